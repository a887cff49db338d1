//! The one integration binary: what needs files beside the source.

mod parity;
mod training;
