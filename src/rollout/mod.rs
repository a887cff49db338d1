//! From noise and prompts to latents: noise schedules, samplers, and the way through them.

pub mod branch;
pub mod pipeline;
pub mod sample;
pub mod sampler;
pub mod schedule;

use crate::device::philox::{Key, Purpose};

pub use pipeline::Pipeline;

/// The streams for `purpose` of images `first..first + count` of a run with `seed`. An image's depends on nothing but its number:
/// not on the batch, not on other images.
pub fn image_keys(seed: u64, purpose: Purpose, first: u32, count: usize) -> Vec<Key> {
    let key = |i| Key { prompt: first + i, ..Key::new(seed, purpose) };
    (0..count as u32).map(key).collect()
}
