//! Where a pixel lies, in sines: half of the numbers for its row, half for its column (Carion et al. 2020, DETR; positions are
//! scaled to 2π over an image).

use std::f32::consts::TAU;
use std::sync::{Mutex, PoisonError};

use crate::device::{Device, Tensor};

const TEMPERATURE: f32 = 10000.0;

/// Levels' sizes, and a table for each.
type Tables = (Vec<[usize; 2]>, Vec<Tensor>);

/// Tables for the sizes of the levels that were seen last: the pictures of a run are of one size.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<Tables>>);

impl Kept {
    /// The tables for levels of `sizes`, on `device`; `make` makes them.
    pub fn of(&self, sizes: &[[usize; 2]], device: &Device, make: impl FnOnce() -> Vec<Tensor>) -> Vec<Tensor> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((known, tables)) if known == sizes => tables.clone(),
            _ => kept.insert((sizes.to_vec(), device.lasting(make))).1.clone(),
        }
    }
}

/// For every pixel of an image of `size` (height, width), row by row, `width` numbers plus those of `level`.
pub(super) fn sines([height, across]: [usize; 2], width: usize, level: &[f32]) -> Vec<f32> {
    let half = width / 2;
    let (rows, columns) = (line(height, half), line(across, half));
    let pixels = (0..height).flat_map(|y| (0..across).map(move |x| (y, x)));
    let numbers = |(y, x): (usize, usize)| {
        let pixel = rows[y * half..][..half].iter().chain(&columns[x * half..][..half]);
        pixel.zip(level).map(|(p, l)| p + l).collect::<Vec<f32>>()
    };
    pixels.flat_map(numbers).collect()
}

/// `count` numbers for each of `n` places along an axis.
fn line(n: usize, count: usize) -> Vec<f32> {
    let place = |i: usize| (i + 1) as f32 / (n as f32 + 1e-6) * TAU;
    let number = |at: f32, i: usize| {
        let phase = at / TEMPERATURE.powf((2 * (i / 2)) as f32 / count as f32);
        if i.is_multiple_of(2) { phase.sin() } else { phase.cos() }
    };
    (0..n).flat_map(|i| (0..count).map(move |c| number(place(i), c))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_before_columns_and_the_last_pixel_of_an_axis_is_a_whole_turn() {
        let level = [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5];
        let all = sines([2, 3], 8, &level);
        assert_eq!(all.len(), 2 * 3 * 8);
        let close = |got: &[f32], want: &[f64]| got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 2e-6);
        let of = |at: f64| [at.sin(), at.cos(), (at / 100.0).sin(), (at / 100.0).cos()];
        let (row, column) = (of(std::f64::consts::PI), of(std::f64::consts::TAU));
        // Row 0 of 2, column 2 of 3.
        assert!(close(&all[2 * 8..][..4], &row), "{all:?}");
        assert!(close(&all[2 * 8 + 4..][..4], &column.map(|v| v + 0.5)), "{all:?}");
    }
}
