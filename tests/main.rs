//! The one integration binary: what needs files beside the source.

mod cli;
mod gguf;
mod http;
mod kernels;
mod parity;
mod protobuf;
mod structure;
mod training;
