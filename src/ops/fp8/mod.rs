//! Linear layers in fp8: weights and activations are e4m3 with a scale for every row, products are summed in f32 and scaled, and
//! low-rank additions come on top in the activations' precision. For rollouts: there is no backward.
//!
//! The CPU multiplies the same e4m3 numbers in f32: in what they are multiplied with, nothing is rounded but sums.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};

use super::linear::{Lora, Then};
use super::{dequantise, dispatch};
use crate::device::{Blocks, DType, Device, Tensor};

/// A matrix in e4m3, whose row `i` is times `scales[i]`.
#[derive(Clone)]
pub struct Rows {
    /// `[.., width]`, in [e4m3](Blocks::F8E4M3).
    pub numbers: Tensor,
    /// One per row: its largest magnitude by 448, the largest number there is.
    pub scales: Tensor,
}

/// A frozen layer.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `W`, `[out, in]`.
    pub weight: &'a Rows,
    /// `b`, `[out]`.
    pub bias: Option<&'a Tensor>,
    /// What all samples go through besides, if anything.
    pub lora: Option<&'a Lora>,
}

/// Fails unless `device` multiplies fp8 beside activations that are kept in `activations`.
///
/// # Errors
/// Says what is needed.
pub fn check(device: &Device, activations: DType) -> Result<()> {
    let Device::Gpu(gpu) = device else { return Ok(()) };
    let (major, minor) = gpu.facts().capability;
    ensure!(
        gpu.is_hopper(),
        "fp8 weights need the fp8 tensor cores of compute capability 9.0 (H100, H200); this GPU has {major}.{minor}"
    );
    ensure!(
        activations == DType::Bf16,
        "fp8 weights on a GPU need activations in bf16, and these are in {}; set train.compute = \"bf16\"",
        crate::device::gpu::suffix(activations)
    );
    Ok(())
}

/// Whether there are kernels for a weight of this shape: rows of whole 16 bytes in fp8, results of whole 16 bytes in bf16.
pub fn fits(outputs: usize, inputs: usize) -> bool {
    inputs.is_multiple_of(16) && outputs.is_multiple_of(8)
}

/// `x` `[.., width]` with every row scaled so that its largest magnitude is 448, and rounded to e4m3, half to even. Rows below
/// 1e-30 become zeros. The width is a multiple of 16.
pub fn quantise(x: &Tensor) -> Rows {
    assert!(x.width().is_multiple_of(16), "fp8: rows of {x:?}");
    let device = x.device();
    let mut numbers = Tensor::scratch_of(&device, DType::Blocks(Blocks::F8E4M3), x.shape());
    let mut scales = Tensor::scratch(&device, &[x.rows()]);
    dispatch!(x, quantise(&mut numbers, &mut scales, x));
    Rows { numbers, scales }
}

/// `then(x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ)`, the first product of `quantised` `x` `[b, .., in]`; returns `[b, .., out]`.
pub fn forward(x: &Tensor, quantised: &Rows, layer: Layer, then: Then) -> Tensor {
    let (outputs, inputs) = (layer.weight.numbers.dim(0), layer.weight.numbers.dim(1));
    assert!(fits(outputs, inputs), "fp8: {:?}", layer.weight.numbers);
    assert!(
        x.width() == inputs && quantised.numbers.shape() == x.shape(),
        "fp8: x {x:?}, weight [{outputs}, {inputs}]"
    );
    assert!(layer.bias.is_none_or(|b| b.len() == outputs), "fp8: bias {:?}", layer.bias);
    assert!(layer.lora.is_none_or(|l| l.samples == (0..x.dim(0))), "fp8: all samples go through one adapter");
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("at least one axis") = outputs;
    let mut y = x.scratch_like(&shape);
    match then {
        Then::Nothing | Then::Activate(_) => {}
        Then::Normalise { .. } => panic!("fp8: a norm is an op of its own"),
        Then::Add(residual) => assert_eq!(residual.shape(), y.shape(), "fp8: residual"),
        Then::AddGated { residual, gate } => {
            assert_eq!(residual.shape(), y.shape(), "fp8: residual");
            gate.check(y.dim(0), y.dim(2));
        }
    }
    let mut work = match x.device() {
        Device::Gpu(_) => None,
        Device::Cpu | Device::Plan(_) => Some(Work::new(x, quantised, layer)),
    };
    dispatch!(x, forward(&mut y, x, quantised, layer, then, work.as_mut()));
    y
}

/// What the CPU needs.
struct Work {
    /// The numbers of activations and weight in f32.
    operands: [Tensor; 2],
    /// Where `x·Aᵀ` goes, `[rows, rank]`, and that times `Bᵀ`, `[rows, out]`.
    low: Option<[Tensor; 2]>,
}

impl Work {
    fn new(x: &Tensor, quantised: &Rows, layer: Layer) -> Self {
        let weight = &layer.weight.numbers;
        let low = |l: &Lora| [l.a.dim(0), weight.dim(0)].map(|width| x.scratch_like(&[x.rows(), width]));
        Self { operands: [&quantised.numbers, weight].map(dequantise::forward), low: layer.lora.map(low) }
    }
}
