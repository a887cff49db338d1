//! One explicit Euler step along the velocity field, with classifier-free guidance (Ho and Salimans 2022) in the same
//! pass.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::Tensor;

/// `x += dt·v`, where `v` is `velocity`, of the shape of `x` `[b, ..]`; or, with a guidance scale `g`, `u + g·(c − u)` of
/// the two halves `u` (unconditional, first) and `c` of `velocity` `[2b, ..]`.
pub fn step(x: &mut Tensor, velocity: &Tensor, guidance: Option<f32>, dt: f32) {
    let copies = if guidance.is_some() { 2 } else { 1 };
    assert_eq!(velocity.len(), copies * x.len(), "euler: {:?} for {:?}", velocity.shape(), x.shape());
    cpu::step(x, velocity, guidance, dt);
}
