use rayon::prelude::*;

use crate::io::image::RgbImage;

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
    data.par_chunks_exact_mut((width * 3).max(1)).zip(&rows).with_min_len(16).for_each(|(out, row)| {
        let lines = [row.first, row.first + 1].map(|y| {
            let y = y.clamp(0, image.height as i64 - 1) as usize;
            &image.data[y * image.width * 3..][..image.width * 3]
        });
        let [above, below] = row.weights;
        for (pixel, tap) in out.as_chunks_mut::<3>().0.iter_mut().zip(&columns) {
            let (left, [a, b]) = (tap.first as usize * 3, tap.weights);
            // At the right rim the second pixel is not there, and its weight is 0.
            let right = if b == 0 { left } else { left + 3 };
            for (c, v) in pixel.iter_mut().enumerate() {
                let [upper, lower] = lines.map(|line| i32::from(line[left + c]) * a + i32::from(line[right + c]) * b);
                let sum = ((above * (upper >> 4)) >> 16) + ((below * (lower >> 4)) >> 16);
                *v = ((sum + 2) >> 2) as u8;
            }
        }
    });
    RgbImage { width, height, data }
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
