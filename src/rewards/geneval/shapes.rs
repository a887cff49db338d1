//! A detector for the tiny models' world: circles, upright squares and triangles of six colours on a plain light
//! ground (`tools/tiny/shapes.py`), as a small autoencoder renders them: with soft edges and stains.
//!
//! A region of one colour is what ideal shape it overlaps best, and the surer the better it fits that one and the worse
//! the others. What lies between two shapes, or two colours, is neither: a policy that is rewarded for it would learn
//! to draw it.

mod fit;
mod segment;
#[cfg(test)]
mod tests;

use anyhow::Result;
use rayon::prelude::*;

use super::{Detection, Detector, Look};
use crate::data::Color;
use crate::io::image::RgbImage;

const CLASSES: [&str; 3] = ["circle", "square", "triangle"];

/// The colours as they are drawn.
const PALETTE: [(Color, [f32; 3]); 6] = [
    (Color::Red, [220.0, 35.0, 40.0]),
    (Color::Green, [35.0, 160.0, 60.0]),
    (Color::Blue, [40.0, 80.0, 225.0]),
    (Color::Yellow, [242.0, 210.0, 40.0]),
    (Color::Purple, [140.0, 45.0, 170.0]),
    (Color::Orange, [245.0, 130.0, 25.0]),
];

/// A colour farther than this from all of the palette is none of it; the nearest two are 81 apart.
const FARTHEST: f32 = 70.0;
/// A colour is no other's if the nearest of the palette is at most this part as far as the second nearest.
const DISTINCT: f32 = 0.75;

/// The detector.
pub struct Shapes;

impl Detector for Shapes {
    fn classes(&self) -> &[&str] {
        &CLASSES
    }

    fn detect(&self, images: &[RgbImage], _: &[Look]) -> Result<Vec<Vec<Detection>>> {
        Ok(images.par_iter().map(detect).collect())
    }
}

/// The shapes in one picture.
fn detect(image: &RgbImage) -> Vec<Detection> {
    let (regions, scale) = segment::regions(image);
    let sides = [image.width as f64, image.height as f64];
    let mut found = Vec::new();
    for region in regions {
        let Some(fit) = fit::best(&region, sides[0].max(sides[1]) / scale) else { continue };
        let bounds = std::array::from_fn(|i| (fit.bounds[i] * scale).clamp(0.0, sides[i % 2]));
        let class = CLASSES[fit.shape as usize].to_string();
        found.push(Detection { class, score: fit.confidence, bounds, color: color(region.color) });
    }
    found
}

/// The palette's colour that `rgb` clearly is.
fn color(rgb: [f32; 3]) -> Option<Color> {
    let mut by_distance = PALETTE.map(|(color, p)| (distance(rgb, p), color));
    by_distance.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (nearest, color) = by_distance[0];
    (nearest < FARTHEST && nearest < DISTINCT * by_distance[1].0).then_some(color)
}

fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
    (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f32>().sqrt()
}

/// 0 below `from`, 1 above `to`, a straight line between; `from` may be the larger.
fn ramp(x: f64, from: f64, to: f64) -> f64 {
    ((x - from) / (to - from)).clamp(0.0, 1.0)
}
