//! The shapes ops are timed at, and filled tensors.

use engine::device::{Tensor, Weight};

/// A stack of tokens: `(name, batch, tokens, width, heads)`. The tiny model's training batch, and SD3.5 Medium at 512x512
/// with 333 text tokens.
pub const TOKENS: [(&str, usize, usize, usize, usize); 2] = [("tiny", 32, 48, 128, 4), ("sd3.5", 1, 1357, 1536, 24)];

/// What an op takes, made of numbers and a shape.
pub trait Filled {
    fn new(values: Vec<f32>, shape: &[usize]) -> Self;
}

impl Filled for Tensor {
    fn new(values: Vec<f32>, shape: &[usize]) -> Self {
        Tensor::from_slice(&values, shape)
    }
}

impl Filled for Weight {
    fn new(values: Vec<f32>, shape: &[usize]) -> Self {
        Weight::owned(values, shape.to_vec())
    }
}

/// Values in about -1..1.
pub fn filled<T: Filled>(shape: &[usize]) -> T {
    let n = shape.iter().product::<usize>();
    T::new((0..n).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect(), shape)
}
