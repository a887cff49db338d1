use super::Activation;
use crate::device::Tensor;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(x: &mut Tensor, activation: Activation) {
    let n = x.len();
    launch(x, name(activation), None, n);
}

pub(super) fn gelu_tanh_backward(d: &mut Tensor, x: &Tensor) {
    backward(d, x, Activation::GeluTanh);
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, activation: Activation) {
    launch(d, &format!("{}_backward", name(activation)), Some(x), x.len());
}

fn name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_tanh",
        Activation::GeluErf => "gelu_erf",
        Activation::QuickGelu => "quick_gelu",
        Activation::Silu => "silu",
    }
}

pub(super) fn multiply(x: &mut Tensor, y: &Tensor) {
    launch(x, "multiply", Some(y), y.len());
}

pub(super) fn add(x: &mut Tensor, y: &Tensor) {
    launch(x, "add", Some(y), y.len());
}

/// A kernel over the `n` elements of `x` in place, and of another operand.
fn launch(x: &mut Tensor, name: &str, y: Option<&Tensor>, n: usize) {
    let (gpu, entry) = (x.gpu(), format!("activation_{name}_{}", suffix(x.dtype())));
    let grid = Grid::packs(n, x.dtype());
    let args = [Some(x.arg_mut()), y.map(Tensor::arg), Some((n as u64).into())];
    gpu.launch("activation", &entry, grid, args.into_iter().flatten());
}
