//! The sinusoidal embedding of time (Vaswani et al. 2017), cosines first.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::Tensor;

/// `[cos(t·f), sin(t·f)]` with `f = 10000^(−i/half)`, `half = channels/2` (diffusers' `Timesteps` with
/// `flip_sin_to_cos`). `timestep` `[b]`, in 0..1000; returns `[b, channels]`.
pub fn forward(timestep: &[f32], channels: usize) -> Tensor {
    assert!(channels.is_multiple_of(2), "timestep: {channels} channels");
    cpu::forward(timestep, channels)
}
