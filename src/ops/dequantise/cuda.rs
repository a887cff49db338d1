use crate::device::Tensor;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(y: &mut Tensor, x: &Tensor) {
    decode(y, x, x.scale());
}

/// What the blocks of `x` stand for, times `scale`, in the type of `y`: single precision or bf16.
pub(in crate::ops) fn decode(y: &mut Tensor, x: &Tensor, scale: f32) {
    // Four elements a thread.
    let (entry, n) = (format!("dequantise_{}_{}", suffix(x.dtype()), suffix(y.dtype())), x.len());
    let args = [y.arg_mut(), x.arg(), scale.into(), (n as u64).into()];
    x.gpu().launch("dequantise", &entry, Grid::flat(n.div_ceil(4)), args);
}
