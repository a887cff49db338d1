use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, Rows};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) {
    let places = [y.address_mut(), x.address(), weight.address(), bias.address()];
    launch("forward", x, &places, eps);
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let places = [dx.address_mut(), dy.address(), x.address(), weight.address()];
    launch("backward", x, &places, eps);
}

/// A kernel over the rows of what is shaped as `x`.
fn launch(name: &str, x: &Tensor, places: &[u64; 4], eps: f32) {
    let (rows, width) = (x.rows(), x.width());
    let Rows { grid, lanes, suffix } = Grid::rows(1, rows, width, x.dtype(), places);
    let sizes = [(rows as u32).into(), (width as u32).into(), lanes.into(), eps.into()];
    let args = places.map(Arg::Ptr).into_iter().chain(sizes);
    x.gpu().launch("layer_norm", &format!("layer_norm_{name}_{suffix}"), grid, args);
}
