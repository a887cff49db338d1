use crate::device::Tensor;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(out: &mut Tensor, images: &Tensor) {
    let (dtype, n) = (images.dtype(), images.len());
    let args = [out.arg_mut(), images.arg(), (n as u64).into()];
    images.gpu().launch("quantise", &format!("quantise_forward_{}", suffix(dtype)), Grid::packs(n, dtype), args);
}
