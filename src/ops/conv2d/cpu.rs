use rayon::prelude::*;

use super::Window;
use super::layout::Layout;
use super::tile::{self, ROWS, Span, Tile};
use crate::device::{Elems, Tensor, Weight};

/// Length of one uninterrupted chain of multiply-adds: 32 channels of a 3x3 window. Part of the definition of the
/// result. A tile's weights stay in the first-level cache, and the pages that hold the channels in the translation
/// buffer: with 64 channels, 512 to 512 channels at 64x48 took 1.7 times as long.
const CHUNK: usize = 288;
/// Distance of the rows of a tile's copied weights: whole cache lines, an odd number of them.
const NEAR: usize = CHUNK + 16;
/// Tiles of windows per task: the part of the image they see over one chunk stays in the second-level cache.
const SPANS: usize = 12;
/// Tiles of output channels per task.
const GROUP: usize = 4;

/// The result as seen by tasks that each own different channels and windows of it.
#[derive(Clone, Copy)]
struct Out(*mut f32);
// SAFETY: tasks write disjoint ranges of a buffer that outlives them all.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// The pointer, by a method so that closures capture the whole of `self`.
    fn ptr(self) -> *mut f32 {
        self.0
    }
}

pub(super) fn forward(x: &Tensor, w: &Weight, bias: Option<&Weight>, window: Window, add: Option<&Tensor>) -> Tensor {
    let shape = if let &[outputs, inputs] = w.shape() { &[outputs, inputs, 1, 1] } else { w.shape() };
    let layout = Layout::new(x.shape(), shape, window);
    let outputs = w.dim(0);
    let plane = layout.out[0] * layout.out[1];
    let mut y = Tensor::scratch(&[x.dim(0), outputs, layout.out[0], layout.out[1]]);
    if let Some(add) = add {
        assert_eq!(add.shape(), y.shape(), "conv2d: add");
    }
    let bias = bias.map(Weight::to_f32);
    let widened;
    let weight = match w.elems() {
        Elems::F32(x) => x,
        half => {
            let mut out = Tensor::scratch(&[half.len()]);
            half.widen_into(out.data_mut());
            widened = out;
            widened.data()
        }
    };
    let (offsets, spans) = (layout.offsets([0, 0]), layout.spans(layout.out));
    let task = Task { weight, bias: bias.as_deref(), offsets: &offsets, spans: &spans, outputs, plane };
    y.data_mut().par_chunks_exact_mut((outputs * plane).max(1)).enumerate().for_each(|(b, y)| {
        let add = add.map(|a| &a.data()[b * outputs * plane..][..outputs * plane]);
        task.run(y, lay_out(&layout, x, b).data(), add);
    });
    y
}

/// Image `b` of `x` in the form the inner loop reads.
fn lay_out(layout: &Layout, x: &Tensor, b: usize) -> Tensor {
    let (channels, pixels) = (x.dim(1), x.dim(2) * x.dim(3));
    let mut padded = Tensor::scratch(&[layout.len()]);
    let (planes, rest) = padded.data_mut().split_at_mut(layout.len() - tile::LANES);
    rest.fill(0.0);
    let image = &x.data()[b * channels * pixels..][..channels * pixels];
    planes
        .par_chunks_exact_mut(layout.channel())
        .zip(image.par_chunks_exact(pixels))
        .for_each(|(out, x)| layout.fill(out, x));
    padded
}

/// `w` `[out, in, 3, 3]` added up for each parity (row, column) of the enlarged image: `[4, out, in, 2, 2]`.
pub(super) fn fold(w: &Weight) -> Tensor {
    /// Which rows of the window fall on the first and on the second pixel row they meet, for each parity.
    const MEETS: [[std::ops::Range<usize>; 2]; 2] = [[0..1, 1..3], [0..2, 2..3]];
    let (outputs, inputs) = (w.dim(0), w.dim(1));
    assert!(outputs == 0 || w.shape()[2..] == [3, 3], "doubling: weight {:?}", w.shape());
    let w: &[f32] = &w.to_f32();
    let mut folded = Tensor::scratch(&[4, outputs, inputs, 2, 2]);
    folded.data_mut().par_iter_mut().with_min_len(1 << 12).enumerate().for_each(|(i, v)| {
        let (parity, kernel, tap) = (i / (outputs * inputs * 4), i / 4 % (outputs * inputs), i % 4);
        let rows = MEETS[parity / 2][tap / 2].clone();
        let columns = || MEETS[parity % 2][tap % 2].clone();
        let sum: f64 = rows.flat_map(|y| columns().map(move |x| f64::from(w[kernel * 9 + y * 3 + x]))).sum();
        *v = sum as f32;
    });
    folded
}

/// The image enlarged twofold, convolved with weights from [`fold`].
pub(super) fn doubled(x: &Tensor, folded: &Tensor, bias: Option<&Weight>) -> Tensor {
    // A window more per row and column than pixels; each parity takes all but the first or all but the last.
    let window = Window { stride: 1, padding: [1; 4] };
    let layout = Layout::new(x.shape(), &folded.shape()[1..], window);
    let (outputs, h, w) = (folded.dim(1), x.dim(2), x.dim(3));
    let plane = h * w;
    let mut y = Tensor::scratch(&[x.dim(0), outputs, 2 * h, 2 * w]);
    let bias = bias.map(Weight::to_f32);
    let offsets: [Vec<usize>; 4] = std::array::from_fn(|parity| layout.offsets([parity / 2, parity % 2]));
    let spans = layout.spans([h, w]);
    let steps = offsets[0].len();
    y.data_mut().par_chunks_exact_mut((4 * outputs * plane).max(1)).enumerate().for_each(|(b, y)| {
        let padded = lay_out(&layout, x, b);
        // A group of channels at a time, so that the parities are still in cache when they are put together.
        for (group, y) in y.chunks_mut(GROUP * ROWS * 4 * plane).enumerate() {
            let (first, rows) = (group * GROUP * ROWS, y.len() / (4 * plane));
            let mut parts = Tensor::scratch(&[4, rows * plane]);
            for (parity, part) in parts.data_mut().chunks_exact_mut(rows * plane).enumerate() {
                let task = Task {
                    weight: &folded.data()[(parity * outputs + first) * steps..][..rows * steps],
                    bias: bias.as_ref().map(|b| &b[first..first + rows]),
                    offsets: &offsets[parity],
                    spans: &spans,
                    outputs: rows,
                    plane,
                };
                task.run(part, padded.data(), None);
            }
            let parts = parts.data();
            y.par_chunks_exact_mut(2 * w).enumerate().with_min_len(16).for_each(|(line, y)| {
                let at = |column: usize| &parts[(line % 2 * 2 + column) * rows * plane + line / 2 * w..][..w];
                interleave(y, at(0), at(1));
            });
        }
    });
    y
}

fn interleave(y: &mut [f32], even: &[f32], odd: &[f32]) {
    y.as_chunks_mut::<2>().0.iter_mut().zip(even.iter().zip(odd)).for_each(|(y, (a, b))| *y = [*a, *b]);
}

struct Task<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    offsets: &'a [usize],
    spans: &'a [Span],
    outputs: usize,
    plane: usize,
}

impl Task<'_> {
    /// All windows of one laid-out image into `y` `[outputs, plane]`.
    fn run(&self, y: &mut [f32], padded: &[f32], add: Option<&[f32]>) {
        let fits = self.bias.is_none_or(|b| b.len() == self.outputs) && y.len() == self.outputs * self.plane;
        assert!(fits && self.weight.len() == self.outputs * self.offsets.len(), "conv2d: {} channels", self.outputs);
        let reach = self.offsets.iter().max().zip(self.spans.last()).map_or(0, |(o, s)| o + s.first + tile::LANES);
        assert!(reach <= padded.len(), "conv2d: a tile reaches element {reach} of {}", padded.len());
        let (blocks, groups) = (self.spans.len().div_ceil(SPANS), self.outputs.div_ceil(ROWS).div_ceil(GROUP));
        let out = Out(y.as_mut_ptr());
        (0..blocks * groups).into_par_iter().for_each(|i| {
            let spans = &self.spans[i % blocks * SPANS..];
            let rows = self.part(i / blocks, groups, 0..self.outputs);
            self.block(out.ptr(), padded, add, &spans[..spans.len().min(SPANS)], rows);
        });
    }

    /// Part `i` of `n` about equal ones.
    fn part(&self, i: usize, n: usize, of: std::ops::Range<usize>) -> std::ops::Range<usize> {
        of.start + i * of.len() / n..of.start + (i + 1) * of.len() / n
    }

    /// Output channels `rows` at the windows of `spans`.
    fn block(&self, y: *mut f32, padded: &[f32], add: Option<&[f32]>, spans: &[Span], rows: std::ops::Range<usize>) {
        let steps = self.offsets.len();
        let tiles = rows.len().div_ceil(ROWS);
        let mut near = [0.0f32; ROWS * NEAR];
        for (chunk, offsets) in self.offsets.chunks(CHUNK).enumerate() {
            for t in 0..tiles {
                // Tiles of equal height waste less than full ones and a small rest.
                let rows = self.part(t, tiles, rows.clone());
                let at = rows.start * self.plane;
                let (bias, add) = if chunk == 0 {
                    let bias = self.bias.map_or(std::ptr::null(), |b| b[rows.clone()].as_ptr());
                    (bias, add.map_or(std::ptr::null(), |a| a[at..].as_ptr()))
                } else {
                    (std::ptr::null(), y.wrapping_add(at).cast_const())
                };
                // Rows far apart, or apart by a power of two, push each other out of the cache.
                let from = rows.start * steps + chunk * CHUNK;
                let (weight, weight_stride) = if steps > CHUNK || steps.is_multiple_of(128) {
                    for (i, near) in near.chunks_exact_mut(NEAR).take(rows.len()).enumerate() {
                        near[..offsets.len()].copy_from_slice(&self.weight[from + i * steps..][..offsets.len()]);
                    }
                    (near.as_ptr(), NEAR)
                } else {
                    (self.weight[from..].as_ptr(), steps)
                };
                for span in spans {
                    // SAFETY: `run` checked that the farthest offset of the last span lies inside `padded`; spans
                    // keep windows below `plane`, rows are below `outputs`, and this task alone has both.
                    unsafe {
                        let tile = Tile {
                            input: padded.as_ptr().add(span.first),
                            offsets,
                            weight,
                            weight_stride,
                            bias,
                            add,
                            out: y.add(at),
                            out_stride: self.plane,
                            span: *span,
                        };
                        tile::run(rows.len(), tile);
                    }
                }
            }
        }
    }
}
