use std::sync::LazyLock;

use rayon::prelude::*;

use crate::io::image::RgbImage;

/// Positions between two pixels that are told apart.
const POSITIONS: usize = 32;
/// Bits after the point of weights.
const BITS: u32 = 15;
/// Pixels that are worked on together, whose positions are counted from the first of them.
const BLOCK: usize = 32;

/// What lies in `quad` (corners clockwise from the upper left), as a picture of `width` by `height`: `getPerspectiveTransform`
/// and `warpPerspective` with `INTER_CUBIC` and `BORDER_REPLICATE`.
pub fn straightened(image: &RgbImage, quad: &[[f32; 2]; 4], width: usize, height: usize) -> RgbImage {
    let m = inverse(perspective(quad, width as f32, height as f32));
    let mut data = vec![0; width * height * 3];
    let rows = (BLOCK / 2).min(height).max(1);
    let columns = (BLOCK * BLOCK / rows).min(width).max(1);
    data.par_chunks_exact_mut((width * 3).max(1)).with_min_len(8).enumerate().for_each(|(y, line)| {
        for (x, pixel) in line.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (first, along) = ((x / columns * columns) as f64, (x % columns) as f64);
            let from = |row: usize| m[row][0] * first + m[row][1] * y as f64 + m[row][2] + m[row][0] * along;
            let w = from(2);
            let scale = if w == 0.0 { 0.0 } else { POSITIONS as f64 / w };
            let [at_x, at_y] = [0, 1].map(|row| {
                (from(row) * scale).clamp(f64::from(i32::MIN), f64::from(i32::MAX)).round_ties_even() as i32
            });
            *pixel = cubic(image, at_x, at_y);
        }
    });
    RgbImage { width, height, data }
}

/// The pixel at a position in parts of a pixel.
fn cubic(image: &RgbImage, x: i32, y: i32) -> [u8; 3] {
    let part = |v: i32| v.rem_euclid(POSITIONS as i32) as usize;
    let whole = |v: i32| i64::from(v.div_euclid(POSITIONS as i32).clamp(i32::from(i16::MIN), i32::from(i16::MAX)));
    let weights = &WEIGHTS[part(y) * POSITIONS + part(x)];
    let (left, top) = (whole(x) - 1, whole(y) - 1);
    let is_inside = (0..image.width as i64 - 3).contains(&left) && (0..image.height as i64 - 3).contains(&top);
    let mut sums = [1i32 << (BITS - 1); 3];
    for (k, weights) in weights.as_chunks::<4>().0.iter().enumerate() {
        let row = (top + k as i64).clamp(0, image.height as i64 - 1) as usize * image.width;
        let mut pixels = [[0; 3]; 4];
        if is_inside {
            let line = &image.data[(row + left as usize) * 3..][..12];
            pixels.copy_from_slice(line.as_chunks::<3>().0);
        } else {
            for (j, pixel) in pixels.iter_mut().enumerate() {
                let column = (left + j as i64).clamp(0, image.width as i64 - 1) as usize;
                pixel.copy_from_slice(&image.data[(row + column) * 3..][..3]);
            }
        }
        for (pixel, weight) in pixels.iter().zip(weights) {
            sums.iter_mut().zip(pixel).for_each(|(sum, v)| *sum += i32::from(*v) * i32::from(*weight));
        }
    }
    sums.map(|sum| (sum >> BITS).clamp(0, 255) as u8)
}

/// For every position down and across, the weights of four by four pixels, which add up to 1.
static WEIGHTS: LazyLock<Vec<[i16; 16]>> = LazyLock::new(|| {
    let curves: Vec<[f32; 4]> = (0..POSITIONS).map(|i| curve(i as f32 / POSITIONS as f32)).collect();
    let of = |i: usize| {
        let (down, across) = (curves[i / POSITIONS], curves[i % POSITIONS]);
        let weight = |k: usize| (down[k / 4] * across[k % 4] * (1 << BITS) as f32).round_ties_even();
        let mut weights: [i16; 16] = std::array::from_fn(|k| weight(k).clamp(-32768.0, 32767.0) as i16);
        let excess = weights.iter().map(|w| i32::from(*w)).sum::<i32>() - (1 << BITS);
        // What rounding leaves over is taken from the greatest of the four in the lower right middle, or from the least.
        let (mut least, mut greatest) = (10, 10);
        for k in [10, 11, 14, 15] {
            if weights[k] < weights[least] {
                least = k;
            } else if weights[k] > weights[greatest] {
                greatest = k;
            }
        }
        let changed = if excess < 0 { greatest } else { least };
        weights[changed] = (i32::from(weights[changed]) - excess) as i16;
        weights
    };
    (0..POSITIONS * POSITIONS).map(of).collect()
});

/// The cubic convolution of four neighbours (Keys 1981, with -0.75) a part `x` behind the second.
fn curve(x: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let first = ((A * (x + 1.0) - 5.0 * A) * (x + 1.0) + 8.0 * A) * (x + 1.0) - 4.0 * A;
    let second = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let third = ((A + 2.0) * (1.0 - x) - (A + 3.0)) * (1.0 - x) * (1.0 - x) + 1.0;
    [first, second, third, 1.0 - first - second - third]
}

/// The map of `quad` to a rectangle at the origin.
fn perspective(quad: &[[f32; 2]; 4], width: f32, height: f32) -> [[f64; 3]; 3] {
    let corners = [[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]];
    let mut rows = [[0.0f64; 9]; 8];
    for (i, ([x, y], to)) in quad.iter().zip(corners).enumerate() {
        for (axis, to) in to.into_iter().enumerate() {
            let row = &mut rows[i + 4 * axis];
            let products = [-x * to, -y * to].map(f64::from);
            row[3 * axis..3 * axis + 3].copy_from_slice(&[f64::from(*x), f64::from(*y), 1.0]);
            row[6..].copy_from_slice(&[products[0], products[1], f64::from(to)]);
        }
    }
    let m = solve(rows);
    [[m[0], m[1], m[2]], [m[3], m[4], m[5]], [m[6], m[7], 1.0]]
}

/// The solution of equations by elimination with pivots; zeros if there is none.
fn solve(mut rows: [[f64; 9]; 8]) -> [f64; 8] {
    for i in 0..8 {
        let pivot = (i..8).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs())).expect("some are left");
        if rows[pivot][i].abs() < f64::EPSILON * 100.0 {
            return [0.0; 8];
        }
        rows.swap(i, pivot);
        let row = rows[i];
        for other in &mut rows[i + 1..] {
            let factor = other[i] / row[i];
            other.iter_mut().zip(row).skip(i).for_each(|(v, r)| *v -= factor * r);
        }
    }
    let mut found = [0.0; 8];
    for i in (0..8).rev() {
        let known: f64 = (i + 1..8).map(|k| rows[i][k] * found[k]).sum();
        found[i] = (rows[i][8] - known) / rows[i][i];
    }
    found
}

/// The inverse by cofactors; zeros if there is none.
fn inverse(m: [[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let minor = |r: usize, c: usize| {
        let ([r1, r2], [c1, c2]) = ([(r + 1) % 3, (r + 2) % 3], [(c + 1) % 3, (c + 2) % 3]);
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    let determinant: f64 = (0..3).map(|c| m[0][c] * minor(0, c)).sum();
    let factor = if determinant == 0.0 { 0.0 } else { 1.0 / determinant };
    std::array::from_fn(|r| std::array::from_fn(|c| minor(c, r) * factor))
}
