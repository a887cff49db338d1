use crate::device::Tensor;
use crate::device::gpu::{Grid, small, suffix};

pub(super) fn forward(x: &mut Tensor, heads: usize, theta: f32) {
    if x.is_empty() {
        return;
    }
    let (gpu, n, half) = (x.gpu(), x.dim(1), x.dim(2) / heads / 2);
    let speeds = gpu.table(&super::speeds(half, theta));
    let two = half.is_multiple_of(2) && x.address().is_multiple_of(2 * x.dtype().bytes(1) as u64);
    let (pack, form) = if two { (2, "packed") } else { (1, "plain") };
    let grid = Grid::of([(n * half / pack).div_ceil(256), x.dim(0), 1], 256);
    let sizes = [n, heads, half].map(|n| small(n).into());
    let args = [x.arg_mut(), (&speeds).into()].into_iter().chain(sizes);
    gpu.launch("rope", &format!("rope_{form}_{}", suffix(x.dtype())), grid, args);
}
