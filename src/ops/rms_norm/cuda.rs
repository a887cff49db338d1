use crate::device::Tensor;
use crate::device::gpu::{Arg, DevicePtr, Grid, Rows};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let y = y.address_mut();
    normalise([y, x.address()], x, weight, eps, inverse);
}

pub(super) fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let both = [x.address_mut(); 2];
    normalise(both, x, weight, eps, inverse);
}

fn normalise(operands: [DevicePtr; 2], x: &Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let kept = inverse.as_ref().map_or(0, |r| r.len() as u32);
    let inverse = inverse.filter(|_| kept > 0).map_or(Arg::Ptr(0), Tensor::arg_mut);
    launch("forward", operands, x, weight, [inverse, kept.into(), eps.into()]);
}

pub(super) fn forward_again(y: &mut Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    let y = y.address_mut();
    launch("forward_again", [y, x.address()], x, weight, [inverse.arg()]);
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    let d = d.address_mut();
    launch("backward", [d, x.address()], x, weight, [inverse.arg()]);
}

/// A kernel over the rows of what is shaped as `x`.
fn launch<const N: usize>(name: &str, operands: [DevicePtr; 2], x: &Tensor, weight: &Tensor, more: [Arg; N]) {
    let width = weight.width();
    let (rows, [a, b]) = (x.len() / width, operands);
    let Rows { grid, lanes, suffix } = Grid::rows(1, rows, width, x.dtype(), &[a, b, weight.address()]);
    let entry = format!("rms_norm_{name}_{suffix}");
    let sizes = [weight.arg(), (rows as u32).into(), (width as u32).into(), lanes.into()];
    x.gpu().launch("rms_norm", &entry, grid, operands.map(Arg::Ptr).into_iter().chain(sizes).chain(more));
}
