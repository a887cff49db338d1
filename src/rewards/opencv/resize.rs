use rayon::prelude::*;

use crate::io::image::RgbImage;

/// Rows per task.
const BAND: usize = 32;
/// What weights are multiplied with.
const ONE: f32 = 2048.0;

/// `resize` of an 8-bit picture with `INTER_LINEAR`: weights of 11 bits, and exact halves by the mean of four.
pub fn bilinear(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    if (width, height) == (image.width, image.height) {
        return image.clone();
    }
    if (2 * width, 2 * height) == (image.width, image.height) {
        return halved(image);
    }
    let (columns, rows) = (taps(image.width, width, true), taps(image.height, height, false));
    let mut data = vec![0; width * height * 3];
    data.par_chunks_mut(BAND * width * 3).zip(rows.par_chunks(BAND)).for_each(|(out, rows)| {
        // Neighbouring rows come from the same two lines, or share one.
        let mut lines: [(Option<usize>, Vec<i32>); 2] = std::array::from_fn(|_| (None, vec![0; width * 3]));
        for (out, row) in out.chunks_exact_mut(width * 3).zip(rows) {
            let wanted = [row.first, row.first + 1].map(|y| y.clamp(0, image.height as i64 - 1) as usize);
            if lines[1].0 == Some(wanted[0]) {
                lines.swap(0, 1);
            }
            for ((has, line), y) in lines.iter_mut().zip(wanted) {
                if *has != Some(y) {
                    across(line, &image.data[y * image.width * 3..][..image.width * 3], &columns);
                    *has = Some(y);
                }
            }
            let [above, below] = row.weights;
            for ((v, upper), lower) in out.iter_mut().zip(&lines[0].1).zip(&lines[1].1) {
                let sum = ((above * (upper >> 4)) >> 16) + ((below * (lower >> 4)) >> 16);
                *v = ((sum + 2) >> 2) as u8;
            }
        }
    });
    RgbImage { width, height, data }
}

/// A row of pixels at another width, in 11 bits more.
fn across(out: &mut [i32], line: &[u8], columns: &[Taps]) {
    for (pixel, tap) in out.as_chunks_mut::<3>().0.iter_mut().zip(columns) {
        let (left, [a, b]) = (tap.first as usize * 3, tap.weights);
        // At the right rim the second pixel is not there, and its weight is 0.
        let right = if b == 0 { left } else { left + 3 };
        let (left, right) = (&line[left..left + 3], &line[right..right + 3]);
        *pixel = [0, 1, 2].map(|c| i32::from(left[c]) * a + i32::from(right[c]) * b);
    }
}

/// Two neighbours and their weights.
struct Taps {
    first: i64,
    weights: [i32; 2],
}

/// The neighbours of every pixel of `to`; those beyond the rims are `clamped`, or left to whoever reads them.
fn taps(from: usize, to: usize, clamped: bool) -> Vec<Taps> {
    let scale = 1.0 / (to as f64 / from as f64);
    let tap = |i: usize| {
        let at = ((i as f64 + 0.5) * scale - 0.5) as f32;
        let (mut first, mut part) = (at.floor() as i64, at - at.floor());
        if clamped && (first < 0 || first >= from as i64 - 1) {
            (first, part) = (first.clamp(0, from as i64 - 1), 0.0);
        }
        Taps { first, weights: [1.0 - part, part].map(|w| (w * ONE).round_ties_even() as i32) }
    };
    (0..to).map(tap).collect()
}

/// The mean of every two by two pixels.
fn halved(image: &RgbImage) -> RgbImage {
    let (width, height) = (image.width / 2, image.height / 2);
    let at = |x: usize, y: usize, c: usize| u32::from(image.data[(y * image.width + x) * 3 + c]);
    let value = |i: usize| {
        let (x, y, c) = (2 * (i / 3 % width), 2 * (i / 3 / width), i % 3);
        ((at(x, y, c) + at(x + 1, y, c) + at(x, y + 1, c) + at(x + 1, y + 1, c) + 2) >> 2) as u8
    };
    RgbImage { width, height, data: (0..width * height * 3).map(value).collect() }
}
