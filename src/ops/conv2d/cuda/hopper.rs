//! The kernels of kernels/conv2d.sm_90a.cu.

use super::Conv;
use crate::device::gpu::driver::Arg;
use crate::device::gpu::{DevicePtr, Grid, Swizzle, TensorMapDesc, suffix};
use crate::device::{DType, Tensor};

/// As in kernels/conv2d.sm_90a.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Tiles {
    across: i32,
    down: i32,
    columns: i32,
    tiles: i32,
    rows: i32,
    taps_across: i32,
    steps: i32,
    stride: i32,
    top: i32,
    left: i32,
    outputs: i32,
    parities: i32,
}

/// Windows across a tile; windows down and channels that a group's stores and what is added go by.
const ACROSS: usize = 16;
const PIECE: [usize; 2] = [4, 64];
/// Input channels of a step.
const STEP: usize = 64;

/// What a block makes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    name: &'static str,
    /// Windows down.
    down: usize,
    /// Output channels.
    channels: usize,
}

impl Form {
    const SMALL: Self = Self { name: "128x128", down: 8, channels: 128 };
    const WIDE: Self = Self { name: "128x256", down: 8, channels: 256 };
    const LONG: Self = Self { name: "256x128", down: 16, channels: 128 };
    #[cfg(test)]
    pub const ALL: [Self; 3] = [Self::SMALL, Self::WIDE, Self::LONG];

    /// The larger two fetch three quarters of what the smallest does for a product, of which there must be enough of one
    /// image for the processors of a chip (132): how many images there are has no say in it.
    pub fn of(conv: &Conv) -> Self {
        let (windows, outputs) = (conv.windows(), conv.outputs as usize);
        let large = if outputs.div_ceil(128).is_multiple_of(2) { Self::WIDE } else { Self::LONG };
        if large.tiles(windows, outputs) * conv.parities() >= 128 { large } else { Self::SMALL }
    }

    /// Of one image.
    fn tiles(self, [down, across]: [usize; 2], outputs: usize) -> usize {
        down.div_ceil(self.down) * across.div_ceil(ACROSS) * outputs.div_ceil(self.channels)
    }
}

/// Whether [`launch`] takes it: half precision throughout, rows of whole 16 bytes, and more channels than the narrow portable
/// kernel has.
pub(super) fn fits(y: &Tensor, x: &Tensor, w: &Tensor, bias: &Tensor, add: Option<&Tensor>, stride: usize) -> bool {
    let half = matches!(x.dtype(), DType::F16 | DType::Bf16) && [y, w].iter().all(|t| t.dtype() == x.dtype());
    let (inputs, outputs) = (x.dim(3), y.dim(3));
    let add = add.map_or(0, Tensor::address);
    let aligned =
        (y.address() | x.address() | w.address() | add).is_multiple_of(16) && bias.address().is_multiple_of(8);
    half && aligned && outputs > 32 && inputs.is_multiple_of(8) && outputs.is_multiple_of(8) && stride <= 8
}

/// `w` `[.., out, kh, kw, in]`, of four parities if the image is doubled.
pub(super) fn launch(form: Form, y: &mut Tensor, [x, w, bias]: [&Tensor; 3], add: Option<&Tensor>, conv: Conv) {
    let (gpu, dtype) = (x.gpu(), x.dtype());
    let (windows, parities) = (conv.windows(), conv.parities());
    let [height, width, inputs, outputs] = [x.dim(1), x.dim(2), x.dim(3), y.dim(3)];
    let (images, stride) = (x.dim(0), conv.stride as usize);
    let (rows, taps_across) = (conv.rows as usize, conv.depth as usize / inputs);
    let tiles = form.tiles(windows, outputs) * parities * images;

    let map = |base: DevicePtr, dims: [usize; 4], strides: [usize; 3], tile: [usize; 4], steps: [usize; 4]| {
        let desc = TensorMapDesc {
            dtype,
            base,
            dims: dims.map(|n| n as u64).to_vec(),
            strides: strides.map(|n| dtype.bytes(n) as u64).to_vec(),
            tile: tile.map(|n| n as u32).to_vec(),
            steps: steps.map(|n| n as u32).to_vec(),
            swizzle: Swizzle::B128,
        };
        gpu.tensor_map(&desc).bytes()
    };
    // A copy takes every `stride`th element of a box.
    let of_x = map(
        x.address(),
        [inputs, width, height, images],
        [inputs, width * inputs, height * width * inputs],
        [STEP, ACROSS * stride, form.down * stride, 1],
        [1, stride, stride, 1],
    );
    let taps = rows * taps_across;
    let of_w = map(
        w.address(),
        [inputs, taps, outputs, parities],
        [inputs, taps * inputs, outputs * taps * inputs],
        [STEP, 1, form.channels, 1],
        [1; 4],
    );
    let [down, across] = windows;
    // Windows lie `apart` in the result, both ways.
    let apart = if parities > 1 { 2 } else { 1 };
    let line = apart * across * outputs;
    let result = |base: DevicePtr, parity: usize| {
        map(
            base + dtype.bytes(parity / 2 * line + parity % 2 * outputs) as u64,
            [outputs, across, down, images],
            [apart * outputs, apart * line, apart * down * line],
            [PIECE[1], ACROSS, PIECE[0], 1],
            [1; 4],
        )
    };
    let base = y.address_mut();
    let of_add = result(add.map_or(base, Tensor::address), 0);
    let of_y = (0..4).flat_map(|parity| result(base, parity % parities));
    let maps: Vec<u8> = [of_x, of_w, of_add].into_iter().flatten().chain(of_y).collect();

    let by = Tiles {
        across: across.div_ceil(ACROSS) as i32,
        down: down.div_ceil(form.down) as i32,
        columns: outputs.div_ceil(form.channels) as i32,
        tiles: i32::try_from(tiles).expect("fewer tiles than 2^31"),
        rows: rows as i32,
        taps_across: taps_across as i32,
        steps: inputs.div_ceil(STEP) as i32,
        stride: conv.stride,
        top: conv.top,
        left: conv.left,
        outputs: outputs as i32,
        parities: parities as i32,
    };
    let grid = Grid::of([tiles.min(gpu.facts().processors as usize), 1, 1], 384);
    let args = [Arg::Bytes(maps.into()), bias.arg(), u32::from(add.is_some()).into(), Arg::of(&by)];
    gpu.launch("conv2d", &format!("conv2d_{}_{}", form.name, suffix(dtype)), grid, args);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tiles_are_for_images_that_have_enough_of_them() {
        let of = |side, outputs, doubled| {
            let sizes = Conv { windows: [side; 2], outputs, doubled, ..bytemuck::Zeroable::zeroed() };
            Form::of(&sizes)
        };
        assert_eq!(of(64, 512, 0), Form::SMALL);
        assert_eq!(of(64, 512, 1), Form::WIDE);
        assert_eq!(of(128, 512, 0), Form::WIDE);
        assert_eq!(of(512, 128, 0), Form::LONG);
        assert_eq!(of(16, 128, 0), Form::SMALL);
    }
}
