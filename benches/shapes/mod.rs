//! The shapes ops are timed at, and filled tensors.
#![allow(dead_code, reason = "every bench uses its own part")]

use engine::device::{Tensor, Weight};

/// A stack of tokens: `(name, batch, tokens, width, heads)`. The tiny model's training batch, and SD3.5 Medium at 512x512
/// with 333 text tokens.
pub const TOKENS: [(&str, usize, usize, usize, usize); 2] = [("tiny", 32, 48, 128, 4), ("sd3.5", 1, 1357, 1536, 24)];

/// Values in about -1..1.
pub fn tensor(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect();
    Tensor::from_slice(&values, shape)
}

/// A parameter like [`tensor`].
pub fn weight(shape: &[usize]) -> Weight {
    Weight::owned(tensor(shape).data().to_vec(), shape.to_vec())
}
