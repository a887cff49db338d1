/// Bits after the point of coordinates.
const SHIFT: u32 = 16;

/// The mean of `values` `[height, width]` over the pixels that `fillPoly` draws for `corners`, truncated to whole pixels
/// from their upper left; 0 if there are none.
pub fn mean_inside(values: &[f32], width: usize, corners: &[[f32; 2]; 4]) -> f64 {
    let height = values.len() / width.max(1);
    let span = |axis: usize, size: usize| {
        let of = |end: fn(f32, f32) -> f32| corners.iter().map(|c| c[axis]).reduce(end).expect("four corners");
        let clip = |v: f32| (v as i64).clamp(0, size as i64 - 1);
        (clip(of(f32::min).floor()), clip(of(f32::max).ceil()))
    };
    let ((left, right), (top, bottom)) = (span(0, width), span(1, height));
    let relative = corners.map(|[x, y]| [(x - left as f32) as i64, (y - top as f32) as i64]);
    let mask = Mask::polygon([right - left + 1, bottom - top + 1], &relative);
    let (mut sum, mut count) = (0.0, 0usize);
    for (y, row) in mask.set.chunks_exact(mask.size[0] as usize).enumerate() {
        let from = (top as usize + y) * width + left as usize;
        for (value, _) in values[from..].iter().zip(row).filter(|(_, set)| **set) {
            sum += f64::from(*value);
            count += 1;
        }
    }
    sum / count.max(1) as f64
}

/// Pixels that are drawn.
struct Mask {
    /// Width and height.
    size: [i64; 2],
    set: Vec<bool>,
}

/// A side of the polygon: rows `from..to`, where it is in the first, and how far it goes to the right in each.
struct Side {
    from: i64,
    to: i64,
    x: i64,
    step: i64,
}

impl Mask {
    /// A polygon with its border.
    fn polygon(size: [i64; 2], corners: &[[i64; 2]]) -> Self {
        let mut mask = Self { size, set: vec![false; (size[0] * size[1]) as usize] };
        let mut sides = Vec::new();
        for (i, &end) in corners.iter().enumerate() {
            let start = corners[(i + corners.len() - 1) % corners.len()];
            mask.line(start, end);
            // Of a side that leaves the picture, what is inside says how steep it is.
            let (mut p, mut q) = (start, end);
            let is_inside = |p: [i64; 2]| (0..size[0]).contains(&p[0]) && (0..size[1]).contains(&p[1]);
            if !(is_inside(p) && is_inside(q)) {
                clip(size, &mut p, &mut q);
            }
            let (p, q) = if p[1] != q[1] { (p, q) } else { ([p[0], start[1]], [q[0], end[1]]) };
            if start[1] == end[1] {
                continue;
            }
            let step = ((q[0] << SHIFT) - (p[0] << SHIFT)) / (q[1] - p[1]);
            let (upper, at) = if start[1] < end[1] { (start, p) } else { (end, q) };
            let x = (at[0] << SHIFT) + (upper[1] - at[1]) * step;
            sides.push(Side { from: upper[1], to: start[1].max(end[1]), x, step });
        }
        let last = sides.iter().map(|s| s.to).max().unwrap_or(0).min(size[1]);
        for y in 0..last {
            let mut met: Vec<i64> =
                sides.iter().filter(|s| (s.from..s.to).contains(&y)).map(|s| s.x + (y - s.from) * s.step).collect();
            met.sort_unstable();
            for pair in met.chunks_exact(2) {
                let from = ((pair[0] + (1 << SHIFT) - 1) >> SHIFT).max(0);
                let to = (pair[1] >> SHIFT).min(size[0] - 1);
                (from..=to).for_each(|x| mask.draw(x, y));
            }
        }
        mask
    }

    fn draw(&mut self, x: i64, y: i64) {
        self.set[(y * self.size[0] + x) as usize] = true;
    }

    /// A line of Bresenham's from left to right, what of it is inside.
    fn line(&mut self, mut p: [i64; 2], mut q: [i64; 2]) {
        if !clip(self.size, &mut p, &mut q) {
            return;
        }
        if q[0] < p[0] {
            (p, q) = (q, p);
        }
        let (dx, dy, down) = (q[0] - p[0], (q[1] - p[1]).abs(), (q[1] - p[1]).signum());
        let (long, short, steep) = (dx.max(dy), dx.min(dy), dy > dx);
        let mut error = long - 2 * short;
        for _ in 0..=long {
            self.draw(p[0], p[1]);
            let aside = error < 0;
            error += if aside { 2 * long } else { 0 } - 2 * short;
            p[0] += i64::from(!steep || aside);
            p[1] += if steep || aside { down } else { 0 };
        }
    }
}

/// Moves the ends of a line that leaves the picture to its rim; whether some of the line is inside.
fn clip(size: [i64; 2], p: &mut [i64; 2], q: &mut [i64; 2]) -> bool {
    let end = size.map(|s| s - 1);
    // Which sides a point is beyond: left, right, above, below.
    let beyond = |p: [i64; 2], axis: usize| [p[axis] < 0, p[axis] > end[axis]];
    let outside = |p: [i64; 2]| [beyond(p, 0), beyond(p, 1)];
    let together = |p: [[bool; 2]; 2], q: [[bool; 2]; 2]| (0..4).any(|i| p[i / 2][i % 2] && q[i / 2][i % 2]);
    let (mut a, mut b) = (outside(*p), outside(*q));
    let none = [[false; 2]; 2];
    if !together(a, b) && (a, b) != (none, none) {
        for axis in [1, 0] {
            let other = 1 - axis;
            if axis == 0 && (together(a, b) || (a, b) == (none, none)) {
                break;
            }
            for first in [true, false] {
                let is_out = if first { a } else { b };
                if is_out[axis].contains(&true) {
                    let to = if is_out[axis][0] { 0 } else { end[axis] };
                    let (from, slope) = (if first { *p } else { *q }, [q[0] - p[0], q[1] - p[1]]);
                    let moved = ((to - from[axis]) as f64 * slope[other] as f64 / slope[axis] as f64) as i64;
                    let point = if first { &mut *p } else { &mut *q };
                    point[other] += moved;
                    point[axis] = to;
                    let now = if axis == 1 { [beyond(*point, 0), [false; 2]] } else { none };
                    *(if first { &mut a } else { &mut b }) = now;
                }
            }
        }
    }
    (a, b) == (none, none)
}
