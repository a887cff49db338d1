use std::f64::consts::PI;

/// A rectangle that may be turned.
#[derive(Clone, Copy, Debug)]
pub struct Rectangle {
    center: [f32; 2],
    size: [f32; 2],
    /// In degrees.
    angle: f32,
}

impl Rectangle {
    /// The length of its shorter side.
    pub fn short_side(&self) -> f32 {
        self.size[0].min(self.size[1])
    }

    /// Its corners, counter-clockwise (on a screen) from the one below and left of the first side.
    fn corners(&self) -> [[f32; 2]; 4] {
        let angle = f64::from(self.angle) * PI / 180.0;
        let (b, a) = (angle.cos() as f32 * 0.5, angle.sin() as f32 * 0.5);
        let ([x, y], [w, h]) = (self.center, self.size);
        let first = [x - a * h - b * w, y + b * h - a * w];
        let second = [x + a * h - b * w, y - b * h - a * w];
        let opposite = |p: [f32; 2]| [2.0 * x - p[0], 2.0 * y - p[1]];
        [first, second, opposite(first), opposite(second)]
    }

    /// Its corners from the upper left one clockwise, where upper and lower are told apart in the left and the right half.
    pub fn clockwise(&self) -> [[f32; 2]; 4] {
        let mut corners = self.corners();
        corners.sort_by(|p, q| (p[0] + 0.0).total_cmp(&(q[0] + 0.0)));
        let [mut left, mut right] = [[corners[0], corners[1]], [corners[2], corners[3]]];
        for side in [&mut left, &mut right] {
            if side[1][1] <= side[0][1] {
                side.swap(0, 1);
            }
        }
        [left[0], right[0], right[1], left[1]]
    }
}

/// The rectangle of least area around `points`, as `minAreaRect` finds it: none around a point or a line, of which it has no
/// width.
pub fn min_area_rectangle(points: &[[i32; 2]]) -> Option<Rectangle> {
    let hull: Vec<[f32; 2]> = hull(points).into_iter().map(|p| p.map(|v| v as f32)).collect();
    (hull.len() > 2).then(|| calipers(&hull))
}

/// `(b - a) x (c - b)`.
fn turn(a: [i32; 2], b: [i32; 2], c: [i32; 2]) -> i64 {
    let difference = |p: [i32; 2], q: [i32; 2]| [0, 1].map(|i| i64::from(q[i]) - i64::from(p[i]));
    let (first, second) = (difference(a, b), difference(b, c));
    first[0] * second[1] - first[1] * second[0]
}

/// The corners of the convex hull, clockwise (on a screen), in the order that OpenCV gives them: from the rightmost one on,
/// or, where the points themselves go around the hull, from the one of them that comes first.
fn hull(points: &[[i32; 2]]) -> Vec<[i32; 2]> {
    let mut sorted: Vec<usize> = (0..points.len()).collect();
    sorted.sort_by_key(|i| (points[*i], *i));
    let Some(last) = sorted.len().checked_sub(1) else { return Vec::new() };
    let by_height = |i: &usize| points[sorted[*i]][1];
    let top = (0..=last).min_by_key(by_height).expect("there is one");
    let bottom = (0..=last).rev().max_by_key(by_height).expect("there is one");
    // The chain of corners from one end of the sorted points to another point, turning one way.
    let chain = |from: usize, to: usize, sign: i64| {
        let between: Vec<usize> = if from <= to { (from..=to).collect() } else { (to..=from).rev().collect() };
        let mut chain: Vec<usize> = Vec::new();
        for i in between {
            let next = sorted[i];
            while let [.., a, b] = chain[..] {
                if turn(points[a], points[b], points[next]).signum() == sign {
                    break;
                }
                chain.pop();
            }
            if chain.len() == 1 && points[chain[0]] == points[next] {
                continue;
            }
            chain.push(next);
        }
        chain
    };
    // From the right over the bottom to the left, and over the top back.
    let quarters = [(last, bottom, 1, false), (0, bottom, -1, true), (0, top, 1, false), (last, top, -1, true)];
    let mut corners: Vec<usize> = Vec::new();
    for (from, to, sign, back) in quarters {
        let mut quarter = chain(from, to, sign);
        if back {
            quarter.reverse();
        }
        quarter.pop();
        corners.extend(quarter);
    }
    let n = corners.len();
    if n > 2 {
        let extreme = |greatest: bool| {
            let key = |i: &usize| if greatest { usize::MAX - corners[*i] } else { corners[*i] };
            (0..n).min_by_key(key).expect("there is one")
        };
        let (least, greatest) = (extreme(false), extreme(true));
        let ascending = (greatest + 1) % n == least;
        let mut turned = corners.clone();
        turned.rotate_left(if ascending { least } else { greatest });
        if turned.windows(2).all(|pair| (pair[0] < pair[1]) == ascending) {
            corners = turned;
        }
    }
    corners.into_iter().map(|i| points[i]).collect()
}

/// Rotating calipers (Toussaint 1983) around a convex polygon of at least three corners, in single precision step by step as
/// OpenCV does it, for the same rounding.
fn calipers(hull: &[[f32; 2]]) -> Rectangle {
    let n = hull.len();
    let edge = |i: usize| {
        let (p, q) = (hull[i], hull[(i + 1) % n]);
        [q[0] - p[0], q[1] - p[1]]
    };
    let extreme = |axis: usize, beyond: fn(&f32, &f32) -> bool| {
        (1..n).fold(0, |best, i| if beyond(&hull[i][axis], &hull[best][axis]) { i } else { best })
    };
    let (less, greater) = (f32::lt, f32::gt);
    // The corners that the four sides touch: least y, greatest x, greatest y, least x.
    let mut touched = [extreme(1, less), extreme(0, greater), extreme(1, greater), extreme(0, less)];
    let mut best: Option<Best> = None;
    for _ in 0..n {
        // Edges at the touched corners, all turned to the first side.
        let [a, b, c, d] = touched.map(edge);
        let turned = [a, [b[1], -b[0]], [-c[0], -c[1]], [-d[1], d[0]]];
        let nearest = (1..4).fold(0, |main, i| {
            let ([x, y], [u, v]) = (turned[i], turned[main]);
            if y * u + -x * v < 0.0 { i } else { main }
        });
        let [dx, dy] = edge(touched[nearest]).map(f64::from);
        let inverse = (1.0 / (dx * dx + dy * dy).sqrt()) as f32;
        let lead = [dx as f32 * inverse, dy as f32 * inverse];
        let base = match nearest {
            0 => lead,
            1 => [lead[1], -lead[0]],
            2 => [-lead[0], -lead[1]],
            _ => [-lead[1], lead[0]],
        };
        touched[nearest] = (touched[nearest] + 1) % n;
        let between = |i: usize, j: usize| {
            let (p, q) = (hull[touched[i]], hull[touched[j]]);
            [q[0] - p[0], q[1] - p[1]]
        };
        let [dx, dy] = between(3, 1);
        let width = dx * base[0] + dy * base[1];
        let [dx, dy] = between(0, 2);
        let height = -dx * base[1] + dy * base[0];
        let area = width * height;
        if best.as_ref().is_none_or(|best| area <= best.area) {
            best = Some(Best { area, base, width, height, left: hull[touched[3]], bottom: hull[touched[0]] });
        }
    }
    best.expect("there are corners").rectangle()
}

/// The smallest rectangle so far: a direction, and a point on each of two sides.
struct Best {
    area: f32,
    base: [f32; 2],
    width: f32,
    height: f32,
    left: [f32; 2],
    bottom: [f32; 2],
}

impl Best {
    fn rectangle(&self) -> Rectangle {
        let [a1, b1] = self.base;
        let (a2, b2) = (-b1, a1);
        let c1 = a1 * self.left[0] + self.left[1] * b1;
        let c2 = a2 * self.bottom[0] + self.bottom[1] * b2;
        let inverse = 1.0 / (a1 * b2 - a2 * b1);
        let corner = [(c1 * b2 - c2 * b1) * inverse, (a1 * c2 - a2 * c1) * inverse];
        let first = [a1 * self.width, b1 * self.width];
        let second = [a2 * self.height, b2 * self.height];
        let length = |v: [f32; 2]| v.map(f64::from).iter().map(|v| v * v).sum::<f64>().sqrt() as f32;
        let angle = f64::from(first[1]).atan2(f64::from(first[0])) as f32;
        Rectangle {
            center: [0, 1].map(|i| corner[i] + (first[i] + second[i]) * 0.5),
            size: [length(first), length(second)],
            angle: (f64::from(angle * 180.0) / PI) as f32,
        }
    }
}
