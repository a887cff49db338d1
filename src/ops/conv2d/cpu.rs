//! A convolution as matrix products: neighbouring windows are rows of a matrix that overlap in memory, so nothing is
//! gathered into columns. A task copies its band of the image once, with the padding around it.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::Window;
use crate::device::{Elems, Tensor, workers};
use crate::ops::cpu::gemm::{KC, Left, Mat, NR, Panels, pack_f32, tiles};
use crate::ops::cpu::{Shared, at_least, repeated, scratch};
use crate::ops::math::wide;

/// Output channels whose weights are packed together.
const COLUMNS: usize = 192;
/// Windows per task, about: enough that packing the weights is nothing beside them.
const WINDOWS: usize = 1024;

/// `f::<bits>(out, w)` for elements of any type.
macro_rules! of_bits {
    ($f:ident($out:expr, $w:expr $(, $arg:expr)*)) => {
        match $w.elems() {
            Elems::F32(x) => $f($out.host_mut(), x $(, $arg)*),
            Elems::F16(x) => $f(bytemuck::cast_slice_mut($out.host_bytes_mut()), x.reinterpret_cast() $(, $arg)*),
            Elems::Bf16(x) => $f(bytemuck::cast_slice_mut($out.host_bytes_mut()), x.reinterpret_cast() $(, $arg)*),
        }
    };
}

pub(super) fn arrange(out: &mut Tensor, w: &Tensor) {
    let (inputs, taps) = (w.dim(1), w.dim(2) * w.dim(3));
    of_bits!(move_inputs_last(out, w, inputs, taps));
}

pub(super) fn turn(out: &mut Tensor, w: &Tensor) {
    let (inputs, taps) = (w.dim(1), w.dim(2) * w.dim(3));
    of_bits!(turn_taps(out, w, inputs, taps));
}

/// `[out, in, taps]` to `[in, taps, out]`, the last tap first.
fn turn_taps<T: Copy + Send + Sync>(out: &mut [T], w: &[T], inputs: usize, taps: usize) {
    let (kernel, outputs) = ((inputs * taps).max(1), w.len() / (inputs * taps).max(1));
    out.par_chunks_exact_mut((taps * outputs).max(1)).enumerate().for_each(|(input, out)| {
        for (tap, row) in out.chunks_exact_mut(outputs).enumerate() {
            let from = input * taps + taps - 1 - tap;
            row.iter_mut().zip(w[from..].iter().step_by(kernel)).for_each(|(o, v)| *o = *v);
        }
    });
}

pub(super) fn turn_folded(out: &mut Tensor, w: &Tensor) {
    /// Which rows of the window meet a pixel row in its enlarged rows −1, 0, 1 and 2.
    const MEETS: [std::ops::Range<usize>; 4] = [2..3, 1..3, 0..2, 0..1];
    let (outputs, inputs) = (w.dim(0), w.dim(1));
    let w: &[f32] = &w.elems().to_f32();
    out.host_mut().par_chunks_exact_mut((16 * outputs).max(1)).enumerate().for_each(|(input, kernel)| {
        for (tap, row) in kernel.chunks_exact_mut(outputs).enumerate() {
            for (o, v) in row.iter_mut().enumerate() {
                let taps = &w[(o * inputs + input) * 9..][..9];
                let columns = || MEETS[tap % 4].clone();
                let rows = MEETS[tap / 4].clone();
                let sum: f64 = rows.flat_map(|y| columns().map(move |x| f64::from(taps[y * 3 + x]))).sum();
                *v = sum as f32;
            }
        }
    });
}

/// `[out, in, taps]` to `[out, taps, in]`.
fn move_inputs_last<T: Copy + Send + Sync>(out: &mut [T], w: &[T], inputs: usize, taps: usize) {
    let kernel = (inputs * taps).max(1);
    out.par_chunks_exact_mut(kernel).zip(w.par_chunks_exact(kernel)).for_each(|(out, w)| {
        for (tap, row) in out.chunks_exact_mut(inputs).enumerate() {
            row.iter_mut().zip(w[tap..].iter().step_by(taps)).for_each(|(o, v)| *o = *v);
        }
    });
}

pub(super) fn fold(out: &mut Tensor, w: &Tensor) {
    /// Which rows of the window fall on the first and on the second pixel row they meet, for each parity.
    const MEETS: [[std::ops::Range<usize>; 2]; 2] = [[0..1, 1..3], [0..2, 2..3]];
    let (outputs, inputs) = (w.dim(0), w.dim(1));
    let w: &[f32] = &w.elems().to_f32();
    out.host_mut().par_chunks_exact_mut((4 * inputs).max(1)).enumerate().for_each(|(i, kernel)| {
        let (parity, o) = (i / outputs, i % outputs);
        for (tap, row) in kernel.chunks_exact_mut(inputs).enumerate() {
            let rows = MEETS[parity / 2][tap / 2].clone();
            for (c, v) in row.iter_mut().enumerate() {
                let taps = &w[(o * inputs + c) * 9..][..9];
                let columns = || MEETS[parity % 2][tap % 2].clone();
                let sum: f64 = rows.clone().flat_map(|y| columns().map(move |x| f64::from(taps[y * 3 + x]))).sum();
                *v = sum as f32;
            }
        }
    });
}

/// One convolution of an image `[h, w, in]` whose windows' results go to rows of another that may lie apart.
struct Job<'a> {
    image: [usize; 3],
    window: Window,
    /// `[out, kh·kw·in]`.
    weight: Elems<'a>,
    kernel: [usize; 2],
    bias: &'a [f32],
    /// Windows down and across.
    size: [usize; 2],
    /// Where window `(y, x)` writes: element `first + y·step[0] + x·step[1]` of an image of the result.
    first: usize,
    step: [usize; 2],
}

impl Job<'_> {
    /// Windows in rows `rows` of one image `x` into the image that begins at element `base` of `y`.
    fn run(&self, y: Shared, base: usize, x: &[f32], add: Option<&[f32]>, rows: std::ops::Range<usize>) {
        let ([height, width, inputs], [kh, kw]) = (self.image, self.kernel);
        let ([left, right, top, _], s) = (self.window.padding, self.window.stride);
        let (outputs, pitch) = (self.bias.len(), (left + width + right) * inputs);
        let lines = (rows.len() - 1) * s + kh;
        let depth = kw * inputs;
        scratch(lines * pitch + COLUMNS.next_multiple_of(NR) * KC, |buffer| {
            let (band, packed) = buffer.split_at_mut(lines * pitch);
            for (i, line) in band.chunks_exact_mut(pitch).enumerate() {
                let from = (rows.start * s + i).wrapping_sub(top);
                if from >= height {
                    line.fill(0.0);
                    continue;
                }
                line[..left * inputs].fill(0.0);
                line[left * inputs..][..width * inputs].copy_from_slice(&x[from * width * inputs..][..width * inputs]);
                line[(left + width) * inputs..].fill(0.0);
            }
            for column in (0..outputs).step_by(COLUMNS) {
                let columns = column..(column + COLUMNS).min(outputs);
                for ky in 0..kh {
                    for k in (0..depth).step_by(KC) {
                        let (from, steps) = (ky * depth + k, KC.min(depth - k));
                        let all = kh * depth;
                        let weight = Mat::strided(self.weight, outputs, all, all).t();
                        pack_f32(packed, weight, from..from + steps, columns.clone());
                        let right = Panels { ptr: packed.as_ptr(), depth: steps };
                        for (i, row) in rows.clone().enumerate() {
                            let at = &band[(i * s + ky) * pitch + k..];
                            let left = Left { ptr: at.as_ptr(), row_stride: s * inputs, step: 1 };
                            let to = y.at(base + self.first + row * self.step[0] + column);
                            // SAFETY: the last window of the row ends at the end of the padded line; the band's rows of
                            // the result are this task's.
                            unsafe {
                                let size = [self.size[1], columns.len()];
                                tiles(size, steps, left, right, (to, self.step[1]), 1.0, from > 0);
                            }
                        }
                    }
                }
                // Pixels whose channels are all there and that lie side by side are one line.
                let together = columns.len() == outputs && self.step[1] == outputs;
                let (lines, length) =
                    if together { (1, self.size[1] * outputs) } else { (self.size[1], columns.len()) };
                let bias = repeated(&self.bias[columns.clone()]);
                for row in rows.clone() {
                    for line in 0..lines {
                        let at = self.first + row * self.step[0] + line * self.step[1] + column;
                        // SAFETY: as above.
                        finish(unsafe { y.slice(base + at, length) }, &bias, add.map(|a| &a[at..][..length]));
                    }
                }
            }
        });
    }
}

wide! {
    /// Adds the bias, [repeated], to some pixels, and then what is to be added.
    fn finish(pixels: &mut [f32], bias: &[f32], add: Option<&[f32]>) {
        for several in pixels.chunks_mut(bias.len()) {
            several.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
        }
        if let Some(add) = add {
            pixels.iter_mut().zip(add).for_each(|(v, a)| *v += a);
        }
    }
}

/// All `jobs` on every image of `x` into the images of `y`, in bands of rows.
fn run(y: &mut Tensor, x: &Tensor, jobs: &[Job], add: Option<&Tensor>) {
    if y.is_empty() {
        return;
    }
    let (images, [h, w]) = (x.dim(0), jobs[0].size);
    let bands = (h * w).div_ceil(WINDOWS).max((2 * workers()).div_ceil(images * jobs.len())).min(h);
    let (per_x, per_y) = (x.len() / images, y.len() / images);
    let out = Shared::new(y.host_mut());
    (0..images * jobs.len() * bands).into_par_iter().with_min_len(at_least(1)).for_each(|task| {
        let (image, job, band) = (task / bands / jobs.len(), &jobs[task / bands % jobs.len()], task % bands);
        let add = add.map(|a| &a.host()[image * per_y..][..per_y]);
        let rows = band * h / bands..(band + 1) * h / bands;
        job.run(out, image * per_y, &x.host()[image * per_x..][..per_x], add, rows);
    });
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor, window: Window, add: Option<&Tensor>) {
    let (bias, size, outputs) = (bias.elems().to_f32(), [y.dim(1), y.dim(2)], y.dim(3));
    let job = Job {
        image: [x.dim(1), x.dim(2), x.dim(3)],
        window,
        weight: w.elems(),
        kernel: [w.dim(1), w.dim(2)],
        bias: &bias,
        size,
        first: 0,
        step: [size[1] * outputs, outputs],
    };
    run(y, x, &[job], add);
}

pub(super) fn doubled(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor) {
    let bias = bias.elems().to_f32();
    let (size, outputs, per_parity) = ([x.dim(1), x.dim(2)], w.dim(1), w.len() / 4);
    let jobs: [Job; 4] = std::array::from_fn(|parity| {
        // The windows of an even row or column begin one pixel before it, those of an odd one at it.
        let (row, column) = (parity / 2, parity % 2);
        Job {
            image: [x.dim(1), x.dim(2), x.dim(3)],
            window: Window { stride: 1, padding: [1 - column, column, 1 - row, row] },
            weight: w.elems().slice(parity * per_parity..(parity + 1) * per_parity),
            kernel: [2, 2],
            bias: &bias,
            size,
            first: (row * 2 * size[1] + column) * outputs,
            step: [4 * size[1] * outputs, 2 * outputs],
        }
    });
    run(y, x, &jobs, None);
}
