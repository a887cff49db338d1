//! A moving average: one flat buffer follows another.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;
use crate::device::work::Work;

/// `average ← decay·average + (1 − decay)·x`; `decay = 0` copies bit for bit.
pub fn forward(average: &mut Tensor, x: &Tensor, decay: f32) {
    assert_eq!(average.shape(), x.shape(), "lerp");
    if decay == 0.0 {
        super::copy::flat_into(average, 0, x);
    } else {
        dispatch!(x, forward(average, x, decay), [Work::stream(2 * x.bytes(), x.bytes())]);
    }
}
