//! Average pooling of NHWC images by windows that touch; forward only, and without kernels: of rewards.

mod cpu;
#[cfg(test)]
mod tests;

use super::on_cpu;
use crate::device::Tensor;

/// The mean of every window of `size` (down, across); what is left over at the right and below is dropped. `x`
/// `[b, h, w, c]`; returns `[b, ⌊h/size⌋, ⌊w/size⌋, c]`.
pub fn average(x: &Tensor, size: [usize; 2]) -> Tensor {
    let &[b, h, w, channels] = x.shape() else { panic!("pool: {x:?}") };
    let mut y = x.scratch_like(&[b, h / size[0], w / size[1], channels]);
    on_cpu!(y, average(&mut y, x, size));
    y
}
