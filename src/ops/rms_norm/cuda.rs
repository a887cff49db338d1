use crate::device::Tensor;
use crate::device::gpu::{Arg, DevicePtr, Grid, Rows};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let y = y.address_mut();
    launch("forward", [y, x.address()], x, weight, eps);
}

pub(super) fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32) {
    let both = [x.address_mut(); 2];
    launch("forward", both, x, weight, eps);
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let d = d.address_mut();
    launch("backward", [d, x.address()], x, weight, eps);
}

/// A kernel over the rows of what is shaped as `x`.
fn launch(name: &str, operands: [DevicePtr; 2], x: &Tensor, weight: &Tensor, eps: f32) {
    let width = weight.width();
    let (rows, [a, b]) = (x.len() / width, operands);
    let Rows { grid, lanes, suffix } = Grid::rows(1, rows, width, x.dtype(), &[a, b, weight.address()]);
    let entry = format!("rms_norm_{name}_{suffix}");
    let sizes = [weight.arg(), (rows as u32).into(), (width as u32).into(), lanes.into(), eps.into()];
    x.gpu().launch("rms_norm", &entry, grid, operands.map(Arg::Ptr).into_iter().chain(sizes));
}
