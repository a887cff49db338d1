use crate::device::Tensor;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) {
    let (gpu, entry, rows, width) = (x.gpu(), format!("layer_norm_forward_{}", suffix(x.dtype())), x.rows(), x.width());
    let (grid, lanes) = Grid::rows(1, rows, width, x.dtype());
    let sizes = [(rows as u32).into(), (width as u32).into(), lanes.into(), eps.into()];
    gpu.launch("layer_norm", &entry, grid, [y.arg_mut(), x.arg(), weight.arg(), bias.arg()].into_iter().chain(sizes));
}
