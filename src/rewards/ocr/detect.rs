//! Where lines of text are: what PaddleOCR does before and after its detector.

use super::Channels;
use super::unclip;
use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::models::ppocr::Detector;
use crate::rewards::opencv::{Bitmap, bilinear, contours, mean_inside, min_area_rectangle};

/// Pictures whose sides together are shorter are padded, each side to at least [`SMALLEST`].
const TINY: usize = 64;
const SMALLEST: usize = 32;
/// Pictures with a longer side are scaled down.
const LONGEST: usize = 960;
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Above it a pixel is text.
const THRESHOLD: f32 = 0.3;
/// A line's mean probability, at least.
const SURE: f64 = 0.6;
/// Regions looked at, at most.
const CANDIDATES: usize = 1000;
/// The short side of a region, at least; after it is grown, two more.
const THINNEST: f32 = 3.0;
/// How far a region grows, times its area over its perimeter: it is trained to be the middle of a line.
const GROWTH: f64 = 1.5;
/// Boxes that are narrower or lower than this are dropped.
const SMALLEST_BOX: i64 = 3;
/// Boxes whose upper left corners differ less in height are in one line.
const SAME_LINE: f32 = 10.0;

/// Corners clockwise from the upper left, in pixels.
pub(super) type Quad = [[f32; 2]; 4];

/// A picture as the network takes it, `[1, h, w, 3]`.
pub(super) fn pixels(image: &RgbImage, channels: Channels, device: &Device) -> Tensor {
    normalised(&resized(image), channels, device)
}

/// How likely each pixel of a picture, at the network's size, is text.
pub(super) struct Map {
    width: usize,
    probabilities: Vec<f32>,
}

impl Map {
    /// What the network gave, `[1, h, w, 1]`, when it is there.
    pub fn of(probabilities: &Tensor) -> Self {
        Self { width: probabilities.dim(2), probabilities: probabilities.to_host() }
    }
}

/// The boxes of lines of text in `image` in reading order.
pub(super) fn quads(map: &Map, image: &RgbImage) -> Vec<Quad> {
    let found = boxes(&map.probabilities, map.width, [image.width, image.height]);
    sorted(found.into_iter().filter_map(|quad| tidy(quad, image.width, image.height)).collect())
}

/// `image` at a size that the network can take.
fn resized(image: &RgbImage) -> RgbImage {
    let padded;
    let mut image = image;
    if image.height + image.width < TINY {
        padded = pad(image, image.width.max(SMALLEST), image.height.max(SMALLEST));
        image = &padded;
    }
    let longest = image.height.max(image.width);
    let ratio = if longest > LONGEST { LONGEST as f64 / longest as f64 } else { 1.0 };
    let step = Detector::STEP;
    let side = |size: usize| {
        let size = (size as f64 * ratio) as usize;
        ((size as f64 / step as f64).round_ties_even() as usize * step).max(step)
    };
    bilinear(image, side(image.width), side(image.height))
}

/// `image` with black at the right and below.
fn pad(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let mut data = vec![0; width * height * 3];
    for (row, from) in data.chunks_exact_mut(width * 3).zip(image.data.chunks_exact(image.width * 3)) {
        row[..from.len()].copy_from_slice(from);
    }
    RgbImage { width, height, data }
}

fn normalised(image: &RgbImage, channels: Channels, device: &Device) -> Tensor {
    let of = |c: usize| move |v: usize| (v as f32 * (1.0 / 255.0f32) - MEAN[c]) / STD[c];
    let table: [Vec<f32>; 3] = [0, 1, 2].map(|c| (0..256).map(of(c)).collect());
    let mut values = vec![0.0; image.data.len()];
    for (to, pixel) in values.as_chunks_mut::<3>().0.iter_mut().zip(channels.of(image)) {
        *to = [0, 1, 2].map(|c| table[c][usize::from(pixel[c])]);
    }
    Tensor::from_slice(device, &values, &[1, image.height, image.width, 3])
}

/// The boxes of what is text in a map of probabilities, in pixels of a picture of `to` (width, height).
pub(super) fn boxes(probabilities: &[f32], width: usize, to: [usize; 2]) -> Vec<[[i64; 2]; 4]> {
    let size = [width, probabilities.len() / width];
    let grown = |contour: Vec<[i32; 2]>| {
        let middle = min_area_rectangle(&contour).filter(|r| r.short_side() >= THINNEST)?;
        let corners = middle.clockwise();
        if mean_inside(probabilities, width, &corners) < SURE {
            return None;
        }
        let outline = unclip::offset(&corners, growth(&corners));
        let whole = min_area_rectangle(&outline).filter(|r| r.short_side() >= THINNEST + 2.0)?;
        let scale = |v: f32, axis: usize| {
            let scaled = (v / size[axis] as f32 * to[axis] as f32).round_ties_even();
            scaled.clamp(0.0, to[axis] as f32) as i64
        };
        Some(whole.clockwise().map(|[x, y]| [scale(x, 0), scale(y, 1)]))
    };
    contours(Bitmap::above(probabilities, width, THRESHOLD)).into_iter().take(CANDIDATES).filter_map(grown).collect()
}

/// How far a box grows.
fn growth(corners: &Quad) -> f64 {
    let corners = corners.map(|c| c.map(f64::from));
    let (mut doubled, mut length) = (0.0, 0.0);
    for i in 0..4 {
        let ([x, y], [u, v]) = (corners[i], corners[(i + 1) % 4]);
        doubled += x * v - u * y;
        length += (u - x).hypot(v - y);
    }
    doubled.abs() / 2.0 * GROWTH / length
}

/// A box inside the picture, corners in order; `None` if it is too small.
pub(super) fn tidy(quad: [[i64; 2]; 4], width: usize, height: usize) -> Option<Quad> {
    let first = |key: fn(&[i64; 2]) -> i64, among: &[[i64; 2]]| {
        (0..among.len()).min_by_key(|i| key(&among[*i])).expect("corners")
    };
    let (sum, negative) = (|p: &[i64; 2]| p[0] + p[1], |p: &[i64; 2]| -p[0] - p[1]);
    let (upper_left, lower_right) = (first(sum, &quad), first(negative, &quad));
    let others: Vec<[i64; 2]> = (0..4).filter(|i| *i != upper_left && *i != lower_right).map(|i| quad[i]).collect();
    let upper_right = others[first(|p| p[1] - p[0], &others)];
    let lower_left = others[first(|p| p[0] - p[1], &others)];
    let inside = |p: [i64; 2]| [p[0].clamp(0, width as i64 - 1) as f32, p[1].clamp(0, height as i64 - 1) as f32];
    let quad = [quad[upper_left], upper_right, quad[lower_right], lower_left].map(inside);
    let large = |to: usize| distance(quad[0], quad[to]) as i64 > SMALLEST_BOX;
    (large(1) && large(3)).then_some(quad)
}

/// The distance of two corners.
pub(super) fn distance(p: [f32; 2], q: [f32; 2]) -> f32 {
    let (dx, dy) = (p[0] - q[0], p[1] - q[1]);
    (dx * dx + dy * dy).sqrt()
}

/// From top to bottom, and from left to right what is at about one height.
pub(super) fn sorted(mut quads: Vec<Quad>) -> Vec<Quad> {
    quads.sort_by(|a, b| a[0][1].total_cmp(&b[0][1]).then(a[0][0].total_cmp(&b[0][0])));
    for i in 1..quads.len() {
        for j in (0..i).rev() {
            let ([x, y], [next_x, next_y]) = (quads[j][0], quads[j + 1][0]);
            if (next_y - y).abs() >= SAME_LINE || next_x >= x {
                break;
            }
            quads.swap(j, j + 1);
        }
    }
    quads
}
