use super::*;
use crate::ops::testing::{max_error, random, wide};

#[test]
fn a_step_matches_its_formula_in_f64_with_and_without_guidance() {
    let (x, velocity) = (random(&[3, 2, 5, 7], 1), random(&[6, 2, 5, 7], 2));
    let (g, dt) = (4.5f32, -0.0625f32);
    let [wide_x, v] = [&x, &velocity].map(wide);
    for guidance in [None, Some(g)] {
        let mut y = x.clone();
        step(&mut y, &if guidance.is_some() { velocity.clone() } else { velocity.slice(0..3) }, guidance, dt);
        let along = |i: usize| match guidance {
            None => v[i],
            Some(g) => v[i] + f64::from(g) * (v[i + x.len()] - v[i]),
        };
        let want: Vec<f64> = (0..x.len()).map(|i| wide_x[i] + f64::from(dt) * along(i)).collect();
        assert!(max_error(&y, &want) < 1e-6);
    }
}
