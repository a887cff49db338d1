use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::Window;
use super::layout::Layout;
use super::tile::{self, ROWS, Span, Tile};
use crate::device::{Elems, Tensor, Weight};

/// Length of one uninterrupted chain of multiply-adds: 64 channels of a 3x3 window. Part of the definition of the
/// result; the weights of a tile over such a chunk stay in the first-level cache.
const CHUNK: usize = 576;
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
    let layout = Layout::new(x.shape(), w.shape(), window);
    let outputs = w.dim(0);
    let plane = layout.out[0] * layout.out[1];
    let mut y = Tensor::scratch(&[x.dim(0), outputs, layout.out[0], layout.out[1]]);
    if let Some(add) = add {
        assert_eq!(add.shape(), y.shape(), "conv2d: add");
    }
    let bias = bias.map(Weight::to_f32);
    assert!(bias.as_ref().is_none_or(|b| b.len() == outputs), "conv2d: bias for {outputs} channels");
    let widened;
    let weight = match w.elems() {
        Elems::F32(x) => x,
        half => {
            widened = widen(half);
            widened.data()
        }
    };
    let (offsets, spans) = (layout.offsets(), layout.spans());
    let task = Task { weight, bias: bias.as_deref(), offsets: &offsets, spans: &spans, outputs, plane };

    let (image, pixels) = (x.len() / x.dim(0).max(1), x.dim(2) * x.dim(3));
    y.data_mut().par_chunks_exact_mut(outputs * plane).enumerate().for_each(|(b, y)| {
        let mut padded = Tensor::scratch(&[layout.len()]);
        let (channels, rest) = padded.data_mut().split_at_mut(layout.len() - tile::LANES);
        rest.fill(0.0);
        let planes = x.data()[b * image..][..image].par_chunks_exact(pixels);
        channels.par_chunks_exact_mut(layout.channel()).zip(planes).for_each(|(out, x)| layout.fill(out, x));
        task.image(y, padded.data(), add.map(|a| &a.data()[b * outputs * plane..][..outputs * plane]));
    });
    y
}

fn widen(half: Elems) -> Tensor {
    let mut out = Tensor::scratch(&[half.len()]);
    match half {
        Elems::F32(x) => out.data_mut().copy_from_slice(x),
        Elems::F16(x) => x.convert_to_f32_slice(out.data_mut()),
        Elems::Bf16(x) => x.convert_to_f32_slice(out.data_mut()),
    }
    out
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
    /// All windows of one laid-out image.
    fn image(&self, y: &mut [f32], padded: &[f32], add: Option<&[f32]>) {
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
                for span in spans {
                    // SAFETY: `image` checked that the farthest offset of the last span lies inside `padded`; spans
                    // keep windows below `plane`, rows are below `outputs`, and this task alone has both.
                    unsafe {
                        let tile = Tile {
                            input: padded.as_ptr().add(span.first),
                            offsets,
                            weight: self.weight.as_ptr().add(rows.start * steps + chunk * CHUNK),
                            weight_stride: steps,
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
