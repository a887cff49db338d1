use super::*;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, check_gradient, check_precision, devices, max_error, on_vm, random, wide};
use crate::ops::{copy, gate};

/// With chunk 1 of four as shift and 3 as scale. `x` `[.., d]`, of samples of `n` rows.
fn reference(x: &[f64], modulation: &[f64], n: usize, d: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (r, row) in x.chunks(d).enumerate() {
        let (hat, _) = normalised(row);
        let at = |c: usize, i: usize| modulation[(r / n * 4 + c) * d + i];
        out.extend((0..d).map(|i| hat[i] * (1.0 + at(3, i)) + at(1, i)));
    }
    out
}

fn reference_backward(dy: &[f64], x: &[f64], modulation: &[f64], n: usize, d: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (r, (dy, row)) in dy.chunks(d).zip(x.chunks(d)).enumerate() {
        let (hat, rstd) = normalised(row);
        let g: Vec<f64> = (0..d).map(|i| dy[i] * (1.0 + modulation[(r / n * 4 + 3) * d + i])).collect();
        let mean = g.iter().sum::<f64>() / d as f64;
        let along = g.iter().zip(&hat).map(|(g, hat)| g * hat).sum::<f64>() / d as f64;
        out.extend((0..d).map(|i| rstd * (g[i] - mean - hat[i] * along)));
    }
    out
}

/// And the reciprocal standard deviation.
fn normalised(row: &[f64]) -> (Vec<f64>, f64) {
    let d = row.len() as f64;
    let mean = row.iter().sum::<f64>() / d;
    let rstd = 1.0 / (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d + f64::from(EPS)).sqrt();
    (row.iter().map(|v| (v - mean) * rstd).collect(), rstd)
}

#[test]
fn adaln_and_its_gradient_match_f64_and_the_gradient_is_added() {
    for device in devices() {
        let (b, n, d) = (2, 3, 21);
        let (x, m, dy) = (random(&[b, n, d], 1), random(&[b, 4 * d], 2), random(&[b, n, d], 3));
        let m64 = wide(&m);
        let reference = |x: &[f64]| reference(x, &m64, n, d);
        let (on, m, dy_on) = (x.to(&device), m.to(&device), dy.to(&device));
        let chunk = |index| Chunk { modulation: &m, index };
        assert!(max_error(&forward(&on, chunk(1), chunk(3)), &reference(&wide(&x))) < 1e-5);
        let mut dx = Tensor::zeros(&device, &[b, n, d]);
        backward(&mut dx, &dy_on, &on, chunk(3));
        check_gradient(&dx, &wide(&x), &dy, reference);
        let once = dx.to_host();
        backward(&mut dx, &dy_on, &on, chunk(3));
        assert!(dx.to_host().iter().zip(once).all(|(twice, once)| *twice == 2.0 * once));
    }
}

#[test]
fn kernels_err_as_little_as_the_cpu_and_give_a_row_the_same_bits_in_any_batch() {
    let sizes = [(9, 1, 1), (9, 3, 21), (9, 5, 64), (9, 2, 128), (9, 1, 261), (9, 1, 1536), (9, 1, 2440), (9, 1, 6160)];
    for ((b, n, d), dtype) in sizes.into_iter().flat_map(|s| [DType::F32, DType::F16, DType::Bf16].map(|t| (s, t))) {
        let of = |shape: &[usize], seed| rounded(&random(shape, seed), dtype);
        let (x, m, dy, dx) = (of(&[b, n, d], 1), of(&[b, 4 * d], 2), of(&[b, n, d], 3), of(&[b, n, d], 4));
        let run = |device: &Device, s: std::ops::Range<usize>| {
            let on = |x: &Tensor| {
                let x = x.slice(s.clone());
                Tensor::from_raw(device, x.dtype(), 1.0, &x.to_raw(), x.shape())
            };
            let (x, m, dy, mut dx) = (on(&x), on(&m), on(&dy), on(&dx));
            let chunk = |index| Chunk { modulation: &m, index };
            let mut also = copy::owned(&dx);
            backward(&mut dx, &dy, &x, chunk(3));
            let gated = backward_gated(&mut also, &dy, &x, chunk(3), chunk(2));
            assert_eq!([bits(&also), bits(&gated)], [bits(&dx), bits(&gate::backward(&dx, chunk(2)))]);
            vec![forward(&x, chunk(1), chunk(3)), dx]
        };
        let got = on_vm(|device| [run(device, 0..b), run(device, 4..5)].concat());
        for (whole, alone) in got[..2].iter().zip(&got[2..]) {
            assert_eq!(bits(&whole.slice(4..5)), bits(alone), "{n} {d} {dtype:?}");
        }

        let [x, m, dy, mut dx] = [x, m, dy, dx].map(|t| Tensor::from_slice(&Device::Cpu, &t.to_host(), t.shape()));
        let chunk = |index| Chunk { modulation: &m, index };
        let (x64, m64, before) = (wide(&x), wide(&m), wide(&dx));
        let y = forward(&x, chunk(1), chunk(3));
        check_precision(&format!("{d} {dtype:?}"), &got[0], &y, &reference(&x64, &m64, n, d));
        let mut also = copy::owned(&dx);
        backward(&mut dx, &dy, &x, chunk(3));
        let gated = backward_gated(&mut also, &dy, &x, chunk(3), chunk(2));
        assert_eq!([bits(&also), bits(&gated)], [bits(&dx), bits(&gate::backward(&dx, chunk(2)))]);
        let gradient = reference_backward(&wide(&dy), &x64, &m64, n, d);
        let want: Vec<f64> = before.iter().zip(gradient).map(|(before, g)| before + g).collect();
        check_precision(&format!("backward of {d} {dtype:?}"), &got[1], &dx, &want);
    }
}
