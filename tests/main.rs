//! The one integration binary: what needs files beside the source.

mod cli;
mod parity;
mod structure;
mod training;
