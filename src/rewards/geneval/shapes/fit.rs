//! Which ideal shape a region is, and how surely.

use std::f64::consts::PI;

use super::ramp;
use super::segment::Region;

/// The ideal shapes, in the order of the detector's classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Circle,
    Square,
    /// Two equal sides, on its base.
    Triangle,
}

/// The overlap at which a shape is nothing, and the one at which it is surely that shape. Drawn ones lie above the latter
/// in 99 of 100 cases even when blurred by 1 pixel with noise of deviation 8; a hexagon is a circle at 0.944, a pentagon
/// at 0.90. Blur takes most from those with corners.
const OVERLAP: [[f64; 2]; 3] = [[0.92, 0.95], [0.90, 0.935], [0.87, 0.91]];

/// The shape that fits best.
pub struct Fit {
    pub shape: Shape,
    /// 0 to 1.
    pub confidence: f64,
    /// Left, top, right, bottom, in the region's pixels.
    pub bounds: [f64; 4],
}

/// An ideal shape that fills a box: its centre, and half its sides.
#[derive(Clone, Copy)]
struct Ideal {
    shape: Shape,
    box_: [f64; 4],
}

impl Ideal {
    /// The shape with the same centre of mass and the same spread as `points`. Soft edges hardly move these, while
    /// they eat the tips that a box around the region would go by.
    fn of(shape: Shape, points: &[[f64; 2]]) -> Self {
        let n = points.len() as f64;
        let mean = [0, 1].map(|i| points.iter().map(|p| p[i]).sum::<f64>() / n);
        let spread = [0, 1].map(|i| (points.iter().map(|p| (p[i] - mean[i]).powi(2)).sum::<f64>() / n).sqrt());
        let [x, y] = mean;
        let [sx, sy] = spread;
        let box_ = match shape {
            Shape::Circle => [x, y, 2.0 * sx, 2.0 * sy],
            Shape::Square => [x, y, 3f64.sqrt() * sx, 3f64.sqrt() * sy],
            Shape::Triangle => {
                let height = 18f64.sqrt() * sy;
                [x, y - height / 6.0, 6f64.sqrt() * sx, height / 2.0]
            }
        };
        Self { shape, box_ }
    }

    fn area(&self) -> f64 {
        let [_, _, a, b] = self.box_;
        a * b * [PI, 4.0, 2.0][self.shape as usize]
    }

    fn holds(&self, p: &[f64; 2]) -> bool {
        let [x, y, a, b] = self.box_;
        let (u, v) = ((p[0] - x) / a, (p[1] - y) / b);
        match self.shape {
            Shape::Circle => u * u + v * v <= 1.0,
            Shape::Square => u.abs() <= 1.0 && v.abs() <= 1.0,
            Shape::Triangle => v <= 1.0 && u.abs() <= (v + 1.0) / 2.0,
        }
    }

    /// Intersection over union with the region that `points` fill evenly, `cell` of area each.
    fn overlap(&self, points: &[[f64; 2]], cell: f64) -> f64 {
        let common = points.iter().filter(|p| self.holds(p)).count() as f64 * cell;
        (common / (points.len() as f64 * cell + self.area() - common)).min(1.0)
    }

    /// Moves and stretches the shape in small steps for as long as the overlap grows.
    fn refine(mut self, points: &[[f64; 2]], cell: f64) -> (Self, f64) {
        let mut best = self.overlap(points, cell);
        for step in [0.5, 0.25] {
            for _ in 0..4 {
                let before = best;
                for (i, way) in (0..4).flat_map(|i| [(i, step), (i, -step)]) {
                    let mut moved = self;
                    moved.box_[i] += way;
                    if moved.box_[2] <= 0.5 || moved.box_[3] <= 0.5 {
                        continue;
                    }
                    let overlap = moved.overlap(points, cell);
                    if overlap > best {
                        (self, best) = (moved, overlap);
                    }
                }
                if best == before {
                    break;
                }
            }
        }
        (self, best)
    }
}

/// The shape that `region` is, in a picture of `side` pixels; none if it is too small to be anything.
pub fn best(region: &Region, side: f64) -> Option<Fit> {
    let points = points(region);
    if points.len() < 4 {
        return None;
    }
    let mut fits = [Shape::Circle, Shape::Square, Shape::Triangle].map(|s| Ideal::of(s, &points).refine(&points, CELL));
    fits.sort_by(|a, b| b.1.total_cmp(&a.1));
    let [(ideal, first), (_, second), _] = fits;
    let [x, y, a, b] = ideal.box_;
    let [none, full] = OVERLAP[ideal.shape as usize];
    let confidence = ramp(first, none, full)
        * ramp(first - second, 0.02, 0.06)
        // As wide as high.
        * ramp((a / b).ln().abs(), 0.35, 0.20)
        // The smallest that is drawn is a fifth of the picture.
        * ramp(2.0 * a.min(b) / side, 0.12, 0.17)
        * ramp(f64::from(region.contrast), 80.0, 130.0)
        * ramp(region.uniform, 0.6, 0.85);
    Some(Fit { shape: ideal.shape, confidence, bounds: [x - a, y - b, x + a, y + b] })
}

/// Points are half a pixel apart.
const CELL: f64 = 0.25;

/// Evenly spaced points where the region covers more than half, coverage being interpolated between pixel centres.
fn points(region: &Region) -> Vec<[f64; 2]> {
    let (width, height) = (region.width, region.coverage.len() / region.width);
    let at = |x: usize, y: usize| region.coverage[y * width + x];
    let mut points = Vec::new();
    for (y, x) in (0..height - 1).flat_map(|y| (0..width - 1).map(move |x| (y, x))) {
        let corners = [at(x, y), at(x + 1, y), at(x, y + 1), at(x + 1, y + 1)];
        for (fx, fy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
            let upper = corners[0] + (corners[1] - corners[0]) * fx;
            let lower = corners[2] + (corners[3] - corners[2]) * fx;
            if upper + (lower - upper) * fy > 0.5 {
                // Pixel centres lie at one half.
                let of = |i: usize, cell: usize, f: f32| region.origin[i] as f64 + cell as f64 + 0.5 + f64::from(f);
                points.push([of(0, x, fx), of(1, y, fy)]);
            }
        }
    }
    points
}
