//! The one integration binary: what needs files beside the source.

mod cli;
mod gguf;
mod parity;
mod protobuf;
mod structure;
mod training;
