use crate::device::Tensor;
use crate::device::gpu::driver::Arg;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let y = y.arg_mut();
    launch("forward", [y, x.arg()], x, weight, eps);
}

pub(super) fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32) {
    let both = [x.arg_mut(), x.arg()];
    launch("forward", both, x, weight, eps);
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let d = d.arg_mut();
    launch("backward", [d, x.arg()], x, weight, eps);
}

/// A kernel over the rows of what is shaped as `x`.
fn launch(name: &str, operands: [Arg; 2], x: &Tensor, weight: &Tensor, eps: f32) {
    let (entry, width) = (format!("rms_norm_{name}_{}", suffix(x.dtype())), weight.width());
    let rows = x.len() / width;
    let (grid, lanes) = Grid::rows(1, rows, width, x.dtype());
    let sizes = [weight.arg(), (rows as u32).into(), (width as u32).into(), lanes.into(), eps.into()];
    x.gpu().launch("rms_norm", &entry, grid, operands.into_iter().chain(sizes));
}
