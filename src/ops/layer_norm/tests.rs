use super::{backward, forward};
use crate::device::{DType, Device, Tensor};
use crate::ops::copy::owned;
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, check_gradient, check_precision, devices, max_error, on_vm, random, wide};

fn reference(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    let d = w.len();
    x.chunks(d)
        .flat_map(|row| {
            let mean = row.iter().sum::<f64>() / d as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
            (0..d).map(move |i| (row[i] - mean) / (var + f64::from(1e-5f32)).sqrt() * w[i] + b[i])
        })
        .collect()
}

#[test]
fn layer_norm_matches_f64_at_odd_widths() {
    for device in devices() {
        for d in [1, 7, 64, 100] {
            let (x, w, b) = (random(&[5, d], 1), random(&[d], 2), random(&[d], 3));
            let want = reference(&wide(&x), &wide(&w), &wide(&b));
            let y = forward(&x.to(&device), &w.to(&device), &b.to(&device), 1e-5);
            assert!(max_error(&y, &want) < 1e-5);
        }
    }
}

#[test]
fn the_kernel_errs_as_little_as_the_cpu_and_gives_a_row_the_same_bits_in_any_batch() {
    let widths = [1, 7, 8, 64, 128, 129, 260, 768, 1031, 2056, 6160];
    for (d, dtype) in widths.into_iter().flat_map(|d| [DType::F32, DType::F16, DType::Bf16].map(|t| (d, t))) {
        let (x, w, b) = (rounded(&random(&[9, d], 1), dtype), random(&[d], 2), random(&[d], 3));
        let run = |device: &Device, rows| forward(&x.slice(rows).to(device), &w.to(device), &b.to(device), 1e-5);
        let got = on_vm(|device| vec![run(device, 0..9), run(device, 4..5)]);
        assert_eq!(bits(&got[0].slice(4..5)), bits(&got[1]), "{d} {dtype:?}");
        let x = rounded(&x, DType::F32);
        let want = reference(&wide(&x), &wide(&w), &wide(&b));
        check_precision(&format!("{d} {dtype:?}"), &got[0], &forward(&x, &w, &b, 1e-5), &want);
    }
}

#[test]
fn the_gradient_matches_finite_differences_and_is_added() {
    for d in [7, 64, 100] {
        let (x, w, b, dy) = (random(&[3, d], 1), random(&[d], 2), random(&[d], 3), random(&[3, d], 4));
        let mut dx = Tensor::zeros(&Device::Cpu, &[3, d]);
        backward(&mut dx, &dy, &x, &w, 1e-5);
        check_gradient(&dx, &wide(&x), &dy, |x| reference(x, &wide(&w), &wide(&b)));
        let once = dx.to_host();
        backward(&mut dx, &dy, &x, &w, 1e-5);
        assert!(dx.to_host().iter().zip(once).all(|(two, one)| *two == one + one));
    }
}

#[test]
fn the_kernel_of_the_gradient_errs_as_little_as_the_cpu_and_gives_a_row_the_same_bits_in_any_batch() {
    let widths = [1, 7, 64, 129, 260, 768, 1031, 6160];
    for (d, dtype) in widths.into_iter().flat_map(|d| [DType::F32, DType::F16, DType::Bf16].map(|t| (d, t))) {
        let [x, dy, sum] = [1, 3, 4].map(|seed| rounded(&random(&[9, d], seed), dtype));
        let w = random(&[d], 2);
        let run = |device: &Device, rows: std::ops::Range<usize>| {
            let [x, dy, mut sum] = [&x, &dy, &sum].map(|t| owned(&t.slice(rows.clone()).to(device)));
            backward(&mut sum, &dy, &x, &w.to(device), 1e-5);
            sum
        };
        let got = on_vm(|device| vec![run(device, 0..9), run(device, 4..5)]);
        assert_eq!(bits(&got[0].slice(4..5)), bits(&got[1]), "{d} {dtype:?}");
        let [x, dy, sum] = [&x, &dy, &sum].map(|t| rounded(t, DType::F32));
        let mut cpu = owned(&sum);
        backward(&mut cpu, &dy, &x, &w, 1e-5);
        let want = gradient(&wide(&x), &wide(&dy), &wide(&w)).into_iter().zip(wide(&sum)).map(|(d, sum)| d + sum);
        check_precision(&format!("{d} {dtype:?}"), &got[0], &cpu, &want.collect::<Vec<_>>());
    }
}

/// The gradient in f64.
fn gradient(x: &[f64], dy: &[f64], w: &[f64]) -> Vec<f64> {
    let d = w.len();
    let of_row = |(x, dy): (&[f64], &[f64])| {
        let mean = |of: &dyn Fn(usize) -> f64| (0..d).map(of).sum::<f64>() / d as f64;
        let middle = mean(&|i| x[i]);
        let rstd = 1.0 / (mean(&|i| (x[i] - middle).powi(2)) + f64::from(1e-5f32)).sqrt();
        let hat: Vec<f64> = x.iter().map(|v| (v - middle) * rstd).collect();
        let g: Vec<f64> = dy.iter().zip(w).map(|(dy, w)| dy * w).collect();
        let (offset, along) = (mean(&|i| g[i]), mean(&|i| g[i] * hat[i]));
        (0..d).map(|i| rstd * (g[i] - offset - hat[i] * along)).collect::<Vec<_>>()
    };
    x.chunks(d).zip(dy.chunks(d)).flat_map(of_row).collect()
}
