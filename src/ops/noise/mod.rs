//! Standard normal numbers, the same bits on every device: integer operations, and additions, multiplications and square
//! roots that are each rounded once.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cpu::normals;

use crate::device::philox::Key;
use crate::device::{Device, Tensor};

/// A tensor of `shape` `[rows, ..]` whose row `i` is the stream of `keys[i]`.
pub fn normal(device: &Device, keys: &[Key], shape: &[usize]) -> Tensor {
    assert_eq!(keys.len(), shape[0], "noise: keys for {shape:?}");
    let mut out = Tensor::scratch(device, shape);
    match device {
        Device::Cpu => cpu::normal(&mut out, keys),
        Device::Gpu(_) => cuda::normal(&mut out, keys),
        Device::Plan(_) => {}
    }
    out
}
