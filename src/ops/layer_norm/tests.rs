use super::{backward, forward};
use crate::device::{DType, Device, Tensor};
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
