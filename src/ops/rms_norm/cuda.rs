use crate::device::Tensor;
use crate::device::gpu::driver::Arg;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let y = y.arg_mut();
    normalise([y, x.arg()], x, weight, eps, inverse);
}

pub(super) fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let both = [x.arg_mut(), x.arg()];
    normalise(both, x, weight, eps, inverse);
}

fn normalise(operands: [Arg; 2], x: &Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let kept = inverse.as_ref().map_or(0, |r| r.len() as u32);
    let inverse = inverse.filter(|_| kept > 0).map_or(Arg::Ptr(0), Tensor::arg_mut);
    launch("forward", operands, x, weight, [inverse, kept.into(), eps.into()]);
}

pub(super) fn forward_again(y: &mut Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    let y = y.arg_mut();
    launch("forward_again", [y, x.arg()], x, weight, [inverse.arg()]);
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    let d = d.arg_mut();
    launch("backward", [d, x.arg()], x, weight, [inverse.arg()]);
}

/// A kernel over the rows of what is shaped as `x`.
fn launch<const N: usize>(name: &str, operands: [Arg; 2], x: &Tensor, weight: &Tensor, more: [Arg; N]) {
    let (entry, width) = (format!("rms_norm_{name}_{}", suffix(x.dtype())), weight.width());
    let rows = x.len() / width;
    let (grid, lanes) = Grid::rows(1, rows, width, x.dtype());
    let sizes = [weight.arg(), (rows as u32).into(), (width as u32).into(), lanes.into()];
    x.gpu().launch("rms_norm", &entry, grid, operands.into_iter().chain(sizes).chain(more));
}
