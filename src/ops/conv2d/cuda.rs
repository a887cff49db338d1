mod hopper;

use super::Window;
use crate::device::gpu::driver::Arg;
use crate::device::gpu::{Grid, small, suffix};
use crate::device::{DType, Tensor};
use crate::ops::copy::cast;

/// As in kernels/common/conv.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit, bytemuck::Zeroable)]
pub struct Conv {
    image: [i32; 3],
    windows: [i32; 2],
    outputs: i32,
    all_windows: u32,
    rows: i32,
    depth: i32,
    stride: i32,
    top: i32,
    left: i32,
    doubled: i32,
}

/// Windows of a block.
const M: usize = 128;
const THREADS: u32 = 256;

pub(super) fn arrange(out: &mut Tensor, w: &Tensor) {
    reorder("arrange", out, w);
}

pub(super) fn turn(out: &mut Tensor, w: &Tensor) {
    reorder("turn", out, w);
}

pub(super) fn fold(out: &mut Tensor, w: &Tensor) {
    add_up("fold", out, w);
}

pub(super) fn turn_folded(out: &mut Tensor, w: &Tensor) {
    add_up("turn_folded", out, w);
}

/// A kernel that puts the elements of a weight in another order.
fn reorder(name: &str, out: &mut Tensor, w: &Tensor) {
    let (inputs, taps, n) = (w.dim(1), w.dim(2) * w.dim(3), w.len());
    let entry = format!("conv2d_{name}_{}", w.dtype().bytes(1));
    let sizes = [inputs, taps, n].map(|n| (n as u32).into());
    w.gpu().launch("conv2d", &entry, Grid::flat(n), [out.arg_mut(), w.arg()].into_iter().chain(sizes));
}

/// A kernel that makes the elements of another weight out of several of a 3x3 one.
fn add_up(name: &str, out: &mut Tensor, w: &Tensor) {
    let (entry, n) = (format!("conv2d_{name}_{}", suffix(w.dtype())), out.len());
    let sizes = [w.dim(0), w.dim(1)].map(|n| (n as u32).into());
    w.gpu().launch("conv2d", &entry, Grid::flat(n), [out.arg_mut(), w.arg()].into_iter().chain(sizes));
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor, window: Window, add: Option<&Tensor>) {
    let conv = Conv::moving(y, x, w, window);
    launch(y, x, w, bias, add, conv);
}

pub(super) fn doubled(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor) {
    let conv = Conv::doubling(y, x);
    launch(y, x, w, bias, None, conv);
}

/// [`forward`], or [`doubled`] if there is no window, in every form that Hopper has, whatever the sizes.
#[cfg(test)]
pub fn in_every_form(
    x: &Tensor,
    w: &Tensor,
    bias: &Tensor,
    window: Option<Window>,
    add: Option<&Tensor>,
) -> Vec<Tensor> {
    let of = |form| {
        let mut y = match window {
            Some(window) => super::forward(x, w, bias, window, add),
            None => super::doubled(x, w, bias),
        };
        let conv = window.map_or(Conv::doubling(&y, x), |window| Conv::moving(&y, x, w, window));
        y = x.scratch_like(y.shape());
        hopper::launch(form, &mut y, [x, &cast(w, x.dtype()), bias], add, conv);
        y
    };
    hopper::Form::ALL.map(of).into()
}

impl Conv {
    fn moving(y: &Tensor, x: &Tensor, w: &Tensor, window: Window) -> Self {
        let [left, _, top, _] = window.padding.map(|n| n as i32);
        let of_all = Self::new(x, [y.dim(1), y.dim(2)], y.dim(3), [w.dim(1), w.dim(2)]);
        Self { stride: window.stride as i32, top, left, ..of_all }
    }

    fn doubling(y: &Tensor, x: &Tensor) -> Self {
        Self { doubled: 1, ..Self::new(x, [x.dim(1), x.dim(2)], y.dim(3), [2, 2]) }
    }

    /// Of single pixels, for `rows` of them.
    pub fn pointwise(rows: usize, inputs: usize, outputs: usize) -> Self {
        Self {
            image: [1, 1, inputs as i32],
            windows: [1, 1],
            outputs: outputs as i32,
            all_windows: small(rows),
            rows: 1,
            depth: inputs as i32,
            stride: 1,
            ..bytemuck::Zeroable::zeroed()
        }
    }

    /// The entry `op`_wide or `op`_narrow in single precision, and the blocks for its tiles.
    pub fn in_f32(&self, op: &str) -> (String, usize) {
        let outputs = self.outputs as usize;
        let (name, columns) = if outputs > 16 { ("wide", 64) } else { ("narrow", 16) };
        (format!("{op}_{name}_f32"), self.tiles(columns))
    }

    /// Blocks for tiles of so many channels.
    fn tiles(&self, columns: usize) -> usize {
        (self.all_windows as usize).div_ceil(M) * (self.outputs as usize).div_ceil(columns)
    }

    /// Down and across an image.
    fn windows(&self) -> [usize; 2] {
        self.windows.map(|n| n as usize)
    }

    /// Of pixels of the result, that have weights of their own.
    fn parities(&self) -> usize {
        if self.doubled > 0 { 4 } else { 1 }
    }

    /// One window at every pixel from the first on.
    fn new(x: &Tensor, windows: [usize; 2], outputs: usize, [rows, columns]: [usize; 2]) -> Self {
        let all_windows = small(x.dim(0) * windows[0] * windows[1]);
        Self {
            image: [x.dim(1) as i32, x.dim(2) as i32, x.dim(3) as i32],
            windows: windows.map(|n| n as i32),
            outputs: outputs as i32,
            all_windows,
            rows: rows as i32,
            depth: (columns * x.dim(3)) as i32,
            stride: 1,
            top: 0,
            left: 0,
            doubled: 0,
        }
    }
}

/// Multiplies in the type of the image or of the weight, whichever is narrower; in the image's if both are half precision.
fn launch(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor, add: Option<&Tensor>, conv: Conv) {
    if y.is_empty() {
        return;
    }
    let (gpu, result) = (x.gpu(), suffix(y.dtype()));
    let dtype = if x.dtype() == DType::F32 { w.dtype() } else { x.dtype() };
    let (x, w) = (cast(x, dtype), cast(w, dtype));
    let (inputs, outputs) = (x.dim(3), conv.outputs as usize);
    if gpu.is_hopper() && hopper::fits(y, &x, &w, bias, add, conv.stride as usize) {
        return hopper::launch(hopper::Form::of(&conv), y, [&x, &w, bias], add, conv);
    }
    let aligned = (x.address() | w.address()).is_multiple_of(16);
    let (entry, tiles) = match dtype {
        DType::F32 => conv.in_f32("conv2d"),
        half => {
            let (name, columns) = match (inputs.is_multiple_of(8) && aligned, outputs > 32) {
                (true, true) => ("wide", 128),
                (true, false) => ("narrow", 32),
                (false, _) => ("ragged", 32),
            };
            (format!("conv2d_{name}_{}_{result}", suffix(half)), conv.tiles(columns))
        }
    };
    let grid = Grid::of([tiles, conv.parities(), 1], THREADS);
    let add = add.map_or(Arg::Ptr(0), Tensor::arg);
    gpu.launch("conv2d", &entry, grid, [y.arg_mut(), x.arg(), w.arg(), bias.arg(), add, Arg::of(&conv)]);
}
