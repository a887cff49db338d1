//! The sinusoidal embedding of time (Vaswani et al. 2017), cosines first.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::device::{Device, Tensor};

/// `[cos(t·f), sin(t·f)]` with `f = 10000^(−i/half)`, `half = channels/2` (diffusers' `Timesteps` with
/// `flip_sin_to_cos`). `timestep` `[b]`, in 0..1000; returns `[b, channels]`. The same bits on every machine.
pub fn forward(device: &Device, timestep: &[f32], channels: usize) -> Tensor {
    assert!(channels.is_multiple_of(2), "timestep: {channels} channels");
    let mut out = Tensor::scratch(device, &[timestep.len(), channels]);
    match device {
        Device::Cpu => cpu::forward(&mut out, timestep),
        Device::Gpu(_) => cuda::forward(&mut out, timestep),
        Device::Plan(_) => {}
    }
    out
}
