//! What the tests are made with.

pub(crate) mod image;
pub(crate) mod server;
pub(crate) mod sink;
pub(crate) mod tar;
