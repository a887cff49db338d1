use super::*;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, check_gradient, check_precision, devices, max_error, on_vm, random, wide};

const EPS: f32 = 1e-6;

fn reference(x: &[f64], w: &[f64]) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let r = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + f64::from(EPS)).sqrt();
            row.iter().zip(w).map(move |(v, w)| v * r * w).collect::<Vec<_>>()
        })
        .collect()
}

fn reference_backward(dy: &[f64], x: &[f64], w: &[f64]) -> Vec<f64> {
    let n = w.len() as f64;
    let row = |(dy, x): (&[f64], &[f64])| -> Vec<f64> {
        let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / n + f64::from(EPS)).sqrt();
        let along = (0..x.len()).map(|i| w[i] * dy[i] * x[i]).sum::<f64>() / n * r * r;
        (0..x.len()).map(|i| r * (w[i] * dy[i] - x[i] * along)).collect()
    };
    dy.chunks(w.len()).zip(x.chunks(w.len())).flat_map(row).collect()
}

/// The result, and what the backward takes.
fn saved(x: &Tensor, w: &Tensor) -> (Tensor, Tensor) {
    let (mut y, mut inverse) = (x.scratch_like(x.shape()), room_for_inverse(x, w));
    forward_into(&mut y, x, w, EPS, &mut inverse);
    (y, inverse)
}

/// A copy on `device` that shares nothing.
fn fresh(x: &Tensor, device: &Device) -> Tensor {
    Tensor::from_raw(device, x.dtype(), 1.0, &x.to_raw(), x.shape())
}

#[test]
fn rms_norm_and_its_gradient_match_f64_at_odd_widths_and_per_head() {
    for device in devices() {
        for ((d, heads), kept) in [(1, 1), (9, 1), (32, 3), (100, 2)].into_iter().zip([0, 1, 3, 4]) {
            let (x, w, dy) = (random(&[4, heads * d], 1), random(&[d], 2), random(&[4, heads * d], 3));
            let (on, w64) = (x.to(&device), wide(&w));
            let w = w.to(&device);
            let y = forward(&on, &w, EPS);
            assert!(max_error(&y, &reference(&wide(&x), &w64)) < 1e-5);
            let mut again = fresh(&x, &device);
            let mut inverse = room_for_inverse(&on.slice(0..kept), &w);
            forward_in_place(&mut again, &w, EPS, Some(&mut inverse));
            assert_eq!(bits(&again), bits(&y));
            let kept = |t: &Tensor| t.slice(0..kept);
            assert_eq!(bits(&forward_again(&kept(&on), &w, &inverse)), bits(&kept(&y)));
            let mut inverse = room_for_inverse(&on, &w);
            forward_into(&mut again, &on, &w, EPS, &mut inverse);
            assert_eq!(bits(&again), bits(&y));
            let mut dx = fresh(&dy, &device);
            backward(&mut dx, &on, &w, &inverse);
            // At width 1 the derivative is that of the sign: nothing but eps.
            if d > 1 {
                check_gradient(&dx, &wide(&x), &dy, |v| reference(v, &w64));
            }
        }
    }
}

#[test]
fn kernels_err_as_little_as_the_cpu_and_give_a_row_the_same_bits_in_any_batch() {
    let sizes = [
        (1, 1),
        (7, 5),
        (32, 3),
        (64, 2),
        (72, 1),
        (96, 2),
        (128, 2),
        (129, 1),
        (256, 1),
        (1031, 1),
        (2056, 1),
        (6160, 1),
    ];
    for ((d, heads), dtype) in sizes.into_iter().flat_map(|s| [DType::F32, DType::F16, DType::Bf16].map(|t| (s, t))) {
        let of = |seed| rounded(&random(&[9, heads * d], seed), dtype);
        let (x, w, dy) = (of(1), random(&[d], 2), of(3));
        let run = |device: &Device, rows: std::ops::Range<usize>| {
            let (x, w) = (x.slice(rows.clone()).to(device), w.to(device));
            let mut dx = fresh(&dy.slice(rows), device);
            let (y, inverse) = saved(&x, &w);
            backward(&mut dx, &x, &w, &inverse);
            vec![y, dx]
        };
        let got = on_vm(|device| [run(device, 0..9), run(device, 4..5)].concat());
        for (whole, row) in got[..2].iter().zip(&got[2..]) {
            assert_eq!(bits(&whole.slice(4..5)), bits(row), "{heads} heads of {d}, {dtype:?}");
        }
        let (x, dy) = (rounded(&x, DType::F32), rounded(&dy, DType::F32));
        let (x64, w64) = (wide(&x), wide(&w));
        check_precision(&format!("{d} {dtype:?}"), &got[0], &forward(&x, &w, EPS), &reference(&x64, &w64));
        let mut dx = fresh(&dy, &Device::Cpu);
        backward(&mut dx, &x, &w, &saved(&x, &w).1);
        let want = reference_backward(&wide(&dy), &x64, &w64);
        check_precision(&format!("backward of {d} {dtype:?}"), &got[1], &dx, &want);
    }
}
