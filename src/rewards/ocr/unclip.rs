//! Polygons made larger as the library Clipper (6.4, `ClipperOffset` with round joins) does it, for the corners of
//! rectangles.

use std::f64::consts::PI;

/// How far an arc may be from its chords.
const TOLERANCE: f64 = 0.25;

/// The outline of everything within `distance` of the polygon of `corners` (clockwise on a screen), which are truncated to
/// whole numbers first. In whole numbers; empty if fewer than three corners are left.
pub(super) fn offset(corners: &[[f32; 2]; 4], distance: f64) -> Vec<[i32; 2]> {
    let mut path: Vec<[f64; 2]> = corners.iter().map(|c| c.map(|v| f64::from(v).trunc())).collect();
    path.dedup();
    if path.len() > 1 && path.first() == path.last() {
        path.pop();
    }
    if path.len() < 3 {
        return Vec::new();
    }
    let n = path.len();
    let doubled_area: f64 = (0..n).map(|i| cross(path[i], path[(i + 1) % n])).sum();
    if doubled_area < 0.0 {
        path.reverse();
    }
    let normals: Vec<[f64; 2]> = (0..n).map(|i| normal(path[i], path[(i + 1) % n])).collect();
    let mut arcs = Arcs::new(distance);
    for i in 0..n {
        arcs.join(path[i], normals[(i + n - 1) % n], normals[i]);
    }
    arcs.points
}

fn cross(p: [f64; 2], q: [f64; 2]) -> f64 {
    p[0] * q[1] - p[1] * q[0]
}

fn dot(p: [f64; 2], q: [f64; 2]) -> f64 {
    p[0] * q[0] + p[1] * q[1]
}

/// The direction away from the polygon at its side from `p` to `q`.
fn normal(p: [f64; 2], q: [f64; 2]) -> [f64; 2] {
    let (dx, dy) = (q[0] - p[0], q[1] - p[1]);
    let inverse = 1.0 / (dx * dx + dy * dy).sqrt();
    [dy * inverse, -(dx * inverse)]
}

/// Arcs around corners, put together.
struct Arcs {
    distance: f64,
    steps_per_radian: f64,
    /// Sine and cosine of a step.
    step: (f64, f64),
    points: Vec<[i32; 2]>,
}

impl Arcs {
    fn new(distance: f64) -> Self {
        let steps = PI / (1.0 - TOLERANCE.min(distance * TOLERANCE) / distance).acos();
        let steps = steps.min(distance * PI);
        Self { distance, steps_per_radian: steps / (2.0 * PI), step: (2.0 * PI / steps).sin_cos(), points: Vec::new() }
    }

    /// A corner between sides with these normals.
    fn join(&mut self, corner: [f64; 2], before: [f64; 2], after: [f64; 2]) {
        let (sine, cosine) = (cross(before, after), dot(before, after));
        if (sine * self.distance).abs() < 1.0 {
            if cosine > 0.0 {
                return self.push(corner, before);
            }
        } else if sine < 0.0 {
            self.push(corner, before);
            self.push(corner, [0.0; 2]);
            return self.push(corner, after);
        }
        let angle = sine.clamp(-1.0, 1.0).atan2(cosine);
        let steps = (round(self.steps_per_radian * angle.abs()) as usize).max(1);
        let ([mut x, mut y], (sin, cos)) = (before, self.step);
        for _ in 0..steps {
            self.push(corner, [x, y]);
            (x, y) = (x * cos - sin * y, x * sin + y * cos);
        }
        self.push(corner, after);
    }

    fn push(&mut self, corner: [f64; 2], direction: [f64; 2]) {
        self.points.push([0, 1].map(|i| round(corner[i] + direction[i] * self.distance) as i32));
    }
}

/// To the nearest whole number, halves away from 0.
fn round(v: f64) -> f64 {
    if v < 0.0 { (v - 0.5).trunc() } else { (v + 0.5).trunc() }
}
