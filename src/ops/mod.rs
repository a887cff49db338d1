//! The fused operations the models are made of, one folder each. `mod.rs` is the contract (shapes, dtypes, what
//! is accumulated and what overwritten), `cpu.rs` the processor's implementation and the reference for every
//! other device, `tests.rs` one body of tests for all of them. Shapes that do not fit are a mistake in this
//! program and panic; whatever a user can get wrong is checked before an op sees it.

pub mod activation;
pub mod adaln;
pub mod attention;
pub mod conv2d;
pub mod cpu;
pub mod embedding;
pub mod euler;
pub mod gate;
pub mod group_norm;
pub mod heads;
pub mod layer_norm;
pub mod linear;
pub mod math;
pub mod patchify;
pub mod position;
pub mod rms_norm;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod timestep;
pub mod transpose;
