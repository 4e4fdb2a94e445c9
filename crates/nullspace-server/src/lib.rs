//! HTTP: routes, authentication, server-sent events, errors as status codes.

mod service;

pub use service::{Caller, ErrorKind, LogStream, RequestContext, SandboxQuery, Service, ServiceError};
