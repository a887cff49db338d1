//! From noise and prompts to latents: noise schedules and samplers.

pub mod sampler;
pub mod schedule;

use crate::device::Tensor;
use crate::device::philox::{Key, Purpose};

/// The standard-normal latent that image `index` of a run with `seed` starts from, written to `out`. It depends on
/// nothing else: not on the batch, not on other images.
pub fn initial_noise(seed: u64, index: u32, out: &mut [f32]) {
    Key { prompt: index, ..Key::new(seed, Purpose::InitialLatent) }.normal(out);
}

/// The starting latents of images `first..first + shape[0]`, `[b, channels, h, w]`.
pub fn initial_noise_batch(seed: u64, first: u32, shape: &[usize]) -> Tensor {
    let mut out = Tensor::scratch(shape);
    let per_image = out.len() / shape[0];
    for (i, image) in out.data_mut().chunks_exact_mut(per_image).enumerate() {
        initial_noise(seed, first + i as u32, image);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_starts_from_the_same_noise_in_any_batch() {
        let whole = initial_noise_batch(7, 0, &[9, 16, 8, 8]);
        assert_eq!(whole.slice(4..5).data(), initial_noise_batch(7, 4, &[1, 16, 8, 8]).data());
        assert_ne!(whole.slice(4..5).data(), whole.slice(5..6).data());
    }
}
