use crate::device::Tensor;
use crate::device::gpu::{Grid, Rows};

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) {
    let (gpu, rows, width) = (x.gpu(), x.rows(), x.width());
    let places = [&*y, x, weight, bias].map(Tensor::address);
    let Rows { grid, lanes, suffix } = Grid::rows(1, rows, width, x.dtype(), &places);
    let entry = format!("layer_norm_forward_{suffix}");
    let sizes = [(rows as u32).into(), (width as u32).into(), lanes.into(), eps.into()];
    gpu.launch("layer_norm", &entry, grid, [y.arg_mut(), x.arg(), weight.arg(), bias.arg()].into_iter().chain(sizes));
}
