use super::{Bend, Curve};
use crate::device::gpu::{Arg, Grid};
use crate::device::{DType, Tensor};
use crate::ops::conv2d::Conv;
use crate::ops::copy::cast;

/// `Bend` of kernels/common/bend.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct BendArg {
    curve: u32,
    slope: f32,
    scale: f32,
    shift: f32,
}

/// `bend` as kernels take it.
pub fn bend_arg(Bend { curve, scale, shift }: Bend) -> Arg {
    let (curve, slope, scale) = match curve {
        Curve::Line => (0, 0.0, scale),
        Curve::Relu => (1, 0.0, scale),
        Curve::HardSwish => (2, 0.0, scale / 6.0),
        Curve::HardSigmoid { slope } => (3, slope, scale),
        Curve::Silu => (4, 0.0, scale),
        Curve::Sigmoid => (5, 0.0, scale),
    };
    Arg::of(&BendArg { curve, slope, scale, shift })
}

pub(super) fn pack(w: &mut Tensor) {
    *w = cast(w, DType::F32);
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, by: Bend, add: Option<&Tensor>) {
    if y.is_empty() {
        return;
    }
    let conv = Conv::pointwise(x.rows(), x.width(), y.width());
    let (entry, blocks) = conv.in_f32("pointwise");
    let [bias, add] = [bias, add].map(|t| t.map_or(Arg::Ptr(0), Tensor::arg));
    let args = [y.arg_mut(), x.arg(), w.arg(), bias, add, Arg::of(&conv), bend_arg(by)];
    x.gpu().launch("pointwise", &entry, Grid::of([blocks, 1, 1], 256), args);
}

pub(super) fn apply(x: &mut Tensor, by: Bend) {
    let (gpu, grid, n) = (x.gpu(), Grid::packs(x.len(), x.dtype()), x.len() as u64);
    gpu.launch("pointwise", "pointwise_apply_f32", grid, [x.arg_mut(), n.into(), bend_arg(by)]);
}
