use super::*;
use crate::device::with_threads;
use crate::ops::affine::{self, Affine};
use crate::ops::testing::{random, wide};

#[test]
fn products_are_means_over_a_row_in_f64() {
    let (rows, per) = (3, 4099);
    let [a, b, c] = [1, 2, 3].map(|seed| random(&[rows, per], seed));
    let weights = [0.5, -2.0, 0.0];
    let differences = [
        Difference { terms: vec![(Weights::All(1.0), &a), (Weights::All(-1.0), &b)] },
        Difference { terms: vec![(Weights::All(1.0), &c), (Weights::Rows(&weights), &a)] },
    ];
    let found = forward(&differences);
    let (a, b, c) = (wide(&a), wide(&b), wide(&c));
    for row in 0..rows {
        let at = |i: usize| row * per + i;
        let d = |i: usize| [a[at(i)] - b[at(i)], c[at(i)] + f64::from(weights[row]) * a[at(i)]];
        let mean = |f: &dyn Fn([f64; 2]) -> f64| (0..per).map(|i| f(d(i))).sum::<f64>() / per as f64;
        // Each difference is rounded to f32 once or twice before it is multiplied; the errors have random signs.
        let near = |x: f64, y: f64| (x - y).abs() < 1e-7;
        for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            assert!(near(found[row].gram[i][j], mean(&|d| d[i] * d[j])));
        }
        assert!((0..2).all(|i| near(found[row].l1[i], mean(&|d| d[i].abs()))));
        assert_eq!((found[row].gram[2], found[row].l1[2]), ([0.0; 4], 0.0));
    }
}

#[test]
fn near_velocities_lose_nothing() {
    // One is a 2^-16 part longer: the difference is exact in f32.
    let a = random(&[1, 1000], 1);
    let b = affine::forward(&a, Affine { scale: 1.0 + 2f32.powi(-10), ..Affine::default() });
    let d = forward(&[Difference { terms: vec![(Weights::All(1.0), &b), (Weights::All(-1.0), &a)] }]);
    let exact = wide(&b).iter().zip(wide(&a)).map(|(b, a)| (b - a).powi(2)).sum::<f64>() / 1000.0;
    assert!((d[0].gram[0][0] - exact).abs() < 1e-14 * exact);
}

#[test]
fn a_row_alone_and_in_a_batch_gives_the_same_bits_for_any_number_of_threads() {
    let (a, b) = (random(&[9, 1031], 1), random(&[9, 1031], 2));
    let run = |threads, rows: std::ops::Range<usize>| {
        let (a, b) = (a.slice(rows.clone()), b.slice(rows));
        let terms = vec![(Weights::All(1.0), &a), (Weights::All(-1.0), &b)];
        with_threads(threads, || forward(&[Difference { terms }])).unwrap()
    };
    let whole = run(1, 0..9);
    assert_eq!(whole, run(3, 0..9));
    assert_eq!(whole[4..5], run(2, 4..5));
}
