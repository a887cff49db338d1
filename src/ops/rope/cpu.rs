use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::at_least;

pub(super) fn forward(x: &mut Tensor, heads: usize, theta: f32) {
    let (n, width) = (x.dim(1), x.dim(2));
    let half = width / heads / 2;
    let speeds = super::speeds(half, theta);
    let turn = |position: usize, i: usize| f64::from(position as f32 * speeds[i]).sin_cos();
    let table: Vec<(f32, f32)> = (0..n)
        .flat_map(|position| (0..half).map(move |i| (position, i)))
        .map(|(position, i)| turn(position, i))
        .map(|(sin, cos)| (sin as f32, cos as f32))
        .collect();
    let tokens = x.host_mut().par_chunks_exact_mut(width).enumerate();
    tokens.with_min_len(at_least(1)).for_each(|(token, all)| {
        let turns = &table[token % n * half..][..half];
        for head in all.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}
