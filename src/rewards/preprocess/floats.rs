//! The preprocessing of programs that hand decoded pictures on as numbers, without rounding them to 8 bits.

use std::ops::Range;

use super::{OPENAI, longest_edge, shortest_edge};
use crate::device::Tensor;
use crate::ops::resample::{self, Axis, Filter};

/// How a picture is brought to a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// The shortest edge to the square's, the middle of that.
    Cropped,
    /// The longest edge to the square's, zeros around.
    Padded,
    /// Both edges to the square's.
    Stretched,
}

/// Steps on planes of numbers from 0 to 1, which have a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floats {
    fit: Fit,
    filter: Filter,
    size: usize,
}

impl Floats {
    /// CLIPScore's in DiffusionNFT: `Resize(size)`, bilinear and antialiased, and `CenterCrop` of torchvision.
    pub fn cropped(size: usize) -> Self {
        Self { fit: Fit::Cropped, filter: Filter::Linear, size }
    }

    /// HPSv2's `ResizeMaxSize` on tensors: bicubic and antialiased, zeros around; what leaves 0 to 1 is not cut off.
    pub fn padded(size: usize) -> Self {
        Self { fit: Fit::Padded, filter: Filter::Cubic, size }
    }

    /// The aesthetic reward's in RSM's first-order training: torch's `interpolate`, bicubic without antialiasing.
    pub fn stretched(size: usize) -> Self {
        Self { fit: Fit::Stretched, filter: Filter::SharpCubic, size }
    }

    /// What makes the rows and the columns of the square out of those of a picture.
    fn axes(&self, height: usize, width: usize) -> [Axis; 2] {
        let (Self { fit, filter, size }, sides) = (*self, [height, width]);
        match fit {
            Fit::Stretched => sides.map(|side| Axis::resized(side, size, filter)),
            Fit::Cropped => {
                let to = shortest_edge(sides, size);
                [0, 1].map(|i| Axis::resized(sides[i], to[i], filter).cropped(middle(to[i], size)))
            }
            Fit::Padded => {
                let to = longest_edge(sides, size);
                [0, 1].map(|i| pad(Axis::resized(sides[i], to[i], filter), size))
            }
        }
    }

    /// Planes `[b, 3, h, w]` as `[b, 3, size, size]`, normalised with OpenAI's mean and deviation.
    pub fn run(&self, planes: &Tensor) -> Tensor {
        let [rows, columns] = self.axes(planes.dim(2), planes.dim(3));
        resample::forward(planes, &rows, &columns, OPENAI.0, OPENAI.1)
    }

    /// The gradient to planes of `height` by `width`, if `d` is that to what [`Floats::run`] gave.
    pub fn backward(&self, d: &Tensor, height: usize, width: usize) -> Tensor {
        let [rows, columns] = self.axes(height, width).map(|axis| axis.transposed());
        resample::forward(d, &rows, &columns, [0.0; 3], OPENAI.1)
    }
}

/// The middle `size` of `length`, as torchvision finds it: half a pixel goes to the even neighbour.
pub(super) fn middle(length: usize, size: usize) -> Range<usize> {
    let first = ((length - size) as f64 / 2.0).round_ties_even() as usize;
    first..first + size
}

/// `axis` with zeros around that make it `size` long; an odd one comes last.
pub(super) fn pad(axis: Axis, size: usize) -> Axis {
    let missing = size - axis.to();
    axis.padded(missing / 2, missing - missing / 2)
}
