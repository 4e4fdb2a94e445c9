//! What the tests are made with.

pub(crate) mod case;
pub(crate) mod image;
pub(crate) mod server;
pub(crate) mod sink;
pub(crate) mod stack;
pub(crate) mod tar;
