//! What goes over HTTP, with a server on this machine that does as it is told.

mod fetch;
mod protocols;
pub mod stub;
