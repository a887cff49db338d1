//! en_PP-OCRv3_det: MobileNetV3 (Howard et al. 2019) without its squeezes, a feature pyramid whose convolutions have them
//! (RSE-FPN), and the probability head of Differentiable Binarization (Liao et al. 2020).

use std::path::Path;

use anyhow::Result;

use super::layers::{Conv, Depthwise, Gates, Pointwise};
use crate::device::{Device, Tensor};
use crate::io::{Loader, Scope, TensorFile};
use crate::ops::enlarge;
use crate::ops::pointwise::{Bend, Curve};

/// Window, stride and activation of every block.
const BLOCKS: [(usize, usize, Curve); 15] = [
    (3, 1, Curve::Relu),
    (3, 2, Curve::Relu),
    (3, 1, Curve::Relu),
    (5, 2, Curve::Relu),
    (5, 1, Curve::Relu),
    (5, 1, Curve::Relu),
    (3, 2, Curve::HardSwish),
    (3, 1, Curve::HardSwish),
    (3, 1, Curve::HardSwish),
    (3, 1, Curve::HardSwish),
    (3, 1, Curve::HardSwish),
    (3, 1, Curve::HardSwish),
    (5, 2, Curve::HardSwish),
    (5, 1, Curve::HardSwish),
    (5, 1, Curve::HardSwish),
];
/// The blocks whose results are levels of the pyramid, finest first; the coarsest level comes after the last block.
const LEVELS: [usize; 3] = [2, 5, 11];
/// `x + x·gate`, with the slope of Paddle's older layers.
const GATE: Bend = Bend { curve: Curve::HardSigmoid { slope: 0.2 }, scale: 1.0, shift: 1.0 };

/// Where there is text.
pub struct Detector {
    stem: Conv,
    blocks: Vec<Block>,
    last: Pointwise,
    /// From the channels of a level to those of the pyramid, finest first.
    lateral: Vec<(Pointwise, Gates)>,
    smooth: Vec<(Conv, Gates)>,
    head: Conv,
    up: [Pointwise; 2],
}

/// An inverted residual.
struct Block {
    expand: Pointwise,
    depthwise: Depthwise,
    project: Pointwise,
    stride: usize,
    curve: Curve,
    residual: bool,
}

impl Detector {
    /// Sides of its input are multiples of this.
    pub const STEP: usize = 32;

    /// The network in `path`, det.safetensors.
    ///
    /// # Errors
    /// Names the file, and the tensors that are missing or not as expected.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let loader = Loader::new(&file, &[], device);
        let root = loader.root();
        let stem = Conv::load(&root.sub("stem"), 3, [3, 3]);
        let (mut channels, mut blocks, mut levels) = (stem.outputs(), Vec::new(), Vec::new());
        for (i, (kernel, stride, curve)) in BLOCKS.into_iter().enumerate() {
            let block = Block::load(&root.sub("blocks").sub(i), channels, kernel, stride, curve);
            channels = block.project.outputs();
            blocks.push(block);
            if LEVELS.contains(&i) {
                levels.push(channels);
            }
        }
        let last = Pointwise::load(&root.sub("last"), channels);
        levels.push(last.outputs());
        let [pyramid, _] = root.shape("lateral.0.conv.weight");
        let lateral = levels.iter().enumerate().map(|(i, channels)| {
            let scope = root.sub("lateral").sub(i);
            (Pointwise::without_bias(&scope.sub("conv"), *channels, pyramid), Gates::load(&scope, pyramid, GATE))
        });
        let lateral = lateral.collect();
        let [smoothed, ..] = root.shape::<4>("smooth.0.conv.weight");
        let smooth = (0..levels.len()).map(|i| {
            let scope = root.sub("smooth").sub(i);
            let conv = Conv::without_bias(&scope.sub("conv"), pyramid, smoothed, [3, 3]);
            (conv, Gates::load(&scope, smoothed, GATE))
        });
        let smooth = smooth.collect();
        let head = Conv::load(&root.sub("head.conv"), levels.len() * smoothed, [3, 3]);
        // As many channels in as out, for each of four pixels; in the end one.
        let first = Pointwise::sized(&root.sub("head.up.0"), head.outputs(), 4 * head.outputs());
        let second = Pointwise::sized(&root.sub("head.up.1"), head.outputs(), 4);
        loader.finish()?;
        Ok(Self { stem, blocks, last, lateral, smooth, head, up: [first, second] })
    }

    /// The probability that a pixel is in the middle of a line of text. `pixels` `[b, h, w, 3]`, normalised, sides multiples
    /// of [`Detector::STEP`]; returns `[b, h, w, 1]`.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let mut levels = self.pyramid(pixels);
        let finest = levels.remove(0);
        let (height, width, channels) = (finest.dim(1), finest.dim(2), finest.dim(3));
        let mut all = pixels.scratch_like(&[pixels.dim(0), height, width, channels * (levels.len() + 1)]);
        // Coarsest first.
        for (i, level) in levels.iter().rev().chain([&finest]).enumerate() {
            enlarge::place(&mut all, i * channels, level, height / level.dim(1));
        }
        let hidden = self.head.forward(&all, 1, Curve::Relu);
        let hidden = enlarge::unfold(&self.up[0].forward(&hidden, Curve::Relu));
        enlarge::unfold(&self.up[1].forward(&hidden, Curve::Sigmoid))
    }

    /// The levels of the pyramid, finest first.
    fn pyramid(&self, pixels: &Tensor) -> Vec<Tensor> {
        let mut x = self.stem.forward(pixels, 2, Curve::HardSwish);
        let mut levels = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x);
            if LEVELS.contains(&i) {
                levels.push(x.clone());
            }
        }
        levels.push(self.last.forward(&x, Curve::HardSwish));
        let mut coarser: Option<Tensor> = None;
        let mut out = Vec::new();
        for ((level, (lateral, gates)), (smooth, after)) in levels.iter().zip(&self.lateral).zip(&self.smooth).rev() {
            let mut level = lateral.forward(level, Curve::Line);
            gates.forward(&mut level);
            if let Some(coarser) = &coarser {
                enlarge::add(&mut level, coarser, 2);
            }
            let mut smoothed = smooth.forward(&level, 1, Curve::Line);
            after.forward(&mut smoothed);
            out.insert(0, smoothed);
            coarser = Some(level);
        }
        out
    }
}

impl Block {
    fn load(scope: &Scope, inputs: usize, kernel: usize, stride: usize, curve: Curve) -> Self {
        let expand = Pointwise::load(&scope.sub("expand"), inputs);
        let depthwise = Depthwise::load(&scope.sub("depthwise"), expand.outputs(), kernel);
        let project = Pointwise::load(&scope.sub("project"), expand.outputs());
        let residual = stride == 1 && project.outputs() == inputs;
        Self { expand, depthwise, project, stride, curve, residual }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.expand.forward(x, self.curve);
        let hidden = self.depthwise.forward(&hidden, [self.stride; 2], self.curve);
        match self.residual {
            true => self.project.add(&hidden, x),
            false => self.project.forward(&hidden, Curve::Line),
        }
    }
}
