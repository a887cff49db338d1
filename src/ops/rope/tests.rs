use super::*;
use crate::ops::testing::{check_batch_invariance, random, wide};

#[test]
fn pairs_of_a_head_are_turned_by_their_position() {
    let (n, heads, d) = (7, 3, 8);
    let x = random(&[2, n, heads * d], 1);
    let mut y = crate::ops::copy::owned(&x);
    forward(&mut y, heads, 100.0);
    let (x, y) = (wide(&x), wide(&y));
    for (at, token) in (0..2 * n).flat_map(|token| (0..heads).map(move |h| ((token * heads + h) * d, token))) {
        for i in 0..d / 2 {
            let angle = (token % n) as f64 * 100f64.powf(-2.0 * i as f64 / d as f64);
            let (a, b) = (x[at + i], x[at + i + d / 2]);
            let want = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
            let off = (y[at + i] - want[0]).abs().max((y[at + i + d / 2] - want[1]).abs());
            assert!(off < 1e-5, "token {token}, pair {i}: off by {off}");
        }
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_is_turned_alike() {
    let x = random(&[9, 33, 64], 2);
    check_batch_invariance("rope", |r| {
        let mut y = crate::ops::copy::owned(&x.slice(r));
        forward(&mut y, 4, 1e4);
        y
    });
}
