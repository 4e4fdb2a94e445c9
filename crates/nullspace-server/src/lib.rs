//! HTTP: routes, authentication, server-sent events, errors as status codes.
