use super::Affine;
use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, suffix};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, map: Affine) {
    launch("forward", y, x, map);
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, map: Affine) {
    launch("backward", d, x, map);
}

fn launch(name: &str, out: &mut Tensor, x: &Tensor, map: Affine) {
    let (dtype, n) = (x.dtype(), x.len());
    let Affine { before, scale, after, limits: [low, high] } = map;
    let args = [out.arg_mut(), x.arg(), Arg::of(&[before, scale, after, low, high]), (n as u64).into()];
    x.gpu().launch("affine", &format!("affine_{name}_{}", suffix(dtype)), Grid::packs(n, dtype), args);
}
