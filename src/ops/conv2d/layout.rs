//! How an image is laid out for the inner loop: with its padding, so that what one weight meets at consecutive
//! windows are consecutive numbers, and nothing needs to be gathered into columns.
//!
//! Rows of one channel lie `pitch` apart, close enough that the zeros at the left of a row are also those at the
//! right of the row above. A stride of `s` is `s x s` such planes, one per remainder of row and column. The
//! windows are then numbered along padded rows; the few between the rows are computed and dropped.

use super::Window;
use super::tile::{LANES, Span};

pub(super) struct Layout {
    window: Window,
    channels: usize,
    /// Height and width of the image as given.
    size: [usize; 2],
    kernel: [usize; 2],
    /// Height and width of the result.
    pub out: [usize; 2],
    /// Distance of rows in a plane.
    pitch: usize,
    /// Elements per plane.
    plane: usize,
}

impl Layout {
    /// For images `[.., channels, h, w]` under a weight `[.., channels, kh, kw]`.
    pub fn new(x: &[usize], w: &[usize], window: Window) -> Self {
        assert!(x.len() == 4 && w.len() == 4 && x[1] == w[1], "conv2d: x {x:?}, weight {w:?}");
        let ([left, right, top, bottom], s) = (window.padding, window.stride);
        let (full_h, full_w) = (x[2] + top + bottom, x[3] + left + right);
        let fits = full_h >= w[2] && full_w >= w[3] && left.max(right) < w[3] && s > 0;
        assert!(fits, "conv2d: x {x:?}, weight {w:?}, {window:?}");
        let pitch = (x[3] + left.max(right)).div_ceil(s);
        // One row more, because the last window's right padding is the next row's left.
        let plane = (full_h.div_ceil(s) + 1) * pitch;
        let out = [(full_h - w[2]) / s + 1, (full_w - w[3]) / s + 1];
        Self { window, channels: x[1], size: [x[2], x[3]], kernel: [w[2], w[3]], out, pitch, plane }
    }

    fn planes_per_channel(&self) -> usize {
        self.window.stride * self.window.stride
    }

    /// Elements per laid-out channel.
    pub fn channel(&self) -> usize {
        self.planes_per_channel() * self.plane
    }

    /// Elements of a laid-out image; the last tile's dropped windows may read past the last plane.
    pub fn len(&self) -> usize {
        self.channels * self.channel() + LANES
    }

    /// Lays out one channel, `image` `[h, w]`.
    pub fn fill(&self, out: &mut [f32], image: &[f32]) {
        let ([left, _, top, _], s) = (self.window.padding, self.window.stride);
        let [h, w] = self.size;
        for (phase, plane) in out.chunks_exact_mut(self.plane).enumerate() {
            let (py, px) = (phase / s, phase % s);
            for (i, row) in plane.chunks_exact_mut(self.pitch).enumerate() {
                let y = (i * s + py).wrapping_sub(top);
                if y >= h {
                    row.fill(0.0);
                    continue;
                }
                let line = &image[y * w..][..w];
                if s > 1 {
                    for (j, v) in row.iter_mut().enumerate() {
                        let x = (j * s + px).wrapping_sub(left);
                        *v = if x < w { line[x] } else { 0.0 };
                    }
                    continue;
                }
                row[..left].fill(0.0);
                let (inside, right) = row[left..].split_at_mut(w);
                right.fill(0.0);
                inside.copy_from_slice(line);
            }
        }
    }

    /// Where each weight of one output channel, in stored order, meets the window in row `first[0]` and column
    /// `first[1]`.
    pub fn offsets(&self, first: [usize; 2]) -> Vec<usize> {
        let first = first[0] * self.pitch + first[1];
        let s = self.window.stride;
        let [kh, kw] = self.kernel;
        let mut offsets = Vec::with_capacity(self.channels * kh * kw);
        for c in 0..self.channels {
            for y in 0..kh {
                for x in 0..kw {
                    let phase = y % s * s + x % s;
                    let plane = c * self.planes_per_channel() + phase;
                    offsets.push(first + plane * self.plane + y / s * self.pitch + x / s);
                }
            }
        }
        offsets
    }

    /// Where the windows of each tile go, if `h` rows of `w` windows are wanted.
    pub fn spans(&self, [h, w]: [usize; 2]) -> Vec<Span> {
        let windows = (h - 1) * self.pitch + w;
        let half = |from: usize| {
            let (mut y, mut x) = (from / self.pitch, from % self.pitch);
            let (start, mut mask) = (y * w + x.min(w), 0u16);
            for lane in 0..LANES / 2 {
                mask |= u16::from(x < w && y < h) << lane;
                x += 1;
                if x == self.pitch {
                    (y, x) = (y + 1, 0);
                }
            }
            (start, mask)
        };
        (0..windows)
            .step_by(LANES)
            .map(|first| {
                let (a, b) = (half(first), half(first + LANES / 2));
                // The second half may lie past the end, where it keeps nothing.
                Span { first, start: [a.0, b.0.min(h * w)], keep: [a.1, b.1] }
            })
            .collect()
    }
}
