use super::Pyramid;
use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, small};

/// Most levels there are here.
const LEVELS: usize = 8;
/// Channels of a head, at most.
const WIDEST: usize = 128;

/// `Pyramid` of kernels/deformable.cu.
#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
#[repr(C)]
struct PyramidArg {
    levels: u32,
    tokens: u32,
    height: [u32; LEVELS],
    width: [u32; LEVELS],
    first: [u32; LEVELS],
}

impl PyramidArg {
    fn of(pyramid: Pyramid) -> Self {
        let count = pyramid.0.len();
        assert!(count <= LEVELS, "deformable: {count} levels; on a GPU at most {LEVELS}");
        let mut arg = Self { levels: small(count), tokens: small(pyramid.tokens()), ..Self::default() };
        let mut first = 0;
        for (i, size) in pyramid.0.iter().enumerate() {
            [arg.height[i], arg.width[i]] = size.map(small);
            arg.first[i] = first;
            first += arg.height[i] * arg.width[i];
        }
        arg
    }
}

pub(super) fn forward(
    out: &mut Tensor,
    values: &Tensor,
    offsets: &Tensor,
    weights: &Tensor,
    pyramid: Pyramid,
    heads: usize,
) {
    if out.is_empty() {
        return;
    }
    let (d, points) = (values.dim(2) / heads, weights.width() / heads);
    assert!(d <= WIDEST, "deformable: heads of {d}; on a GPU at most {WIDEST}");
    let warps = out.rows() * heads;
    let sizes = [heads, d, points, warps].map(|n| small(n).into());
    let tensors = [out.arg_mut(), values.arg(), offsets.arg(), weights.arg(), Arg::of(&PyramidArg::of(pyramid))];
    let grid = Grid::flat(32 * warps);
    values.gpu().launch("deformable", "deformable_forward_f32", grid, tensors.into_iter().chain(sizes));
}
