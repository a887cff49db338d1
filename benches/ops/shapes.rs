//! The shapes ops are timed at, and filled tensors.

use engine::device::{Device, Tensor};

/// A stack of tokens: `(name, batch, tokens, width, heads)`. The tiny model's training batch, and SD3.5 Medium at 512x512
/// with 333 text tokens.
pub const TOKENS: [(&str, usize, usize, usize, usize); 2] = [("tiny", 32, 48, 128, 4), ("sd3.5", 1, 1357, 1536, 24)];

/// Latents: `(name, batch, side)` with 16 channels. A rollout batch of the tiny model, and one of SD3.5 Medium at 512x512.
pub const LATENTS: [(&str, usize, usize); 2] = [("tiny", 32, 8), ("sd3.5", 4, 64)];

/// Values in about -1..1.
pub fn filled(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect();
    Tensor::from_slice(&Device::Cpu, &values, shape)
}
