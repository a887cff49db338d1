use super::*;
use crate::device::Device;
use crate::ops::copy::owned;
use crate::ops::testing::{check_gradient, max_error, random, wide};

#[test]
fn adaln_and_its_gradient_match_f64_and_the_gradient_is_added() {
    let (b, n, d) = (2, 3, 21);
    let (x, m, dy) = (random(&[b, n, d], 1), random(&[b, 4 * d], 2), random(&[b, n, d], 3));
    let m64 = wide(&m);
    let reference = |x: &[f64]| -> Vec<f64> {
        let mut out = Vec::new();
        for (r, row) in x.chunks(d).enumerate() {
            let mean = row.iter().sum::<f64>() / d as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
            for (i, v) in row.iter().enumerate() {
                let at = |c: usize| m64[(r / n * 4 + c) * d + i];
                out.push((v - mean) / (var + f64::from(EPS)).sqrt() * (1.0 + at(3)) + at(1));
            }
        }
        out
    };
    let chunk = |index| Chunk { modulation: &m, index };
    assert!(max_error(&forward(&x, chunk(1), chunk(3)), &reference(&wide(&x))) < 1e-5);
    let mut dx = Tensor::zeros(&Device::Cpu, &[b, n, d]);
    backward(&mut dx, &dy, &x, chunk(3));
    check_gradient(&dx, &wide(&x), &dy, reference);
    let once = owned(&dx);
    backward(&mut dx, &dy, &x, chunk(3));
    assert!(dx.host().iter().zip(once.host()).all(|(twice, once)| *twice == 2.0 * once));
}
