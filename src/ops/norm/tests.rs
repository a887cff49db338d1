use super::*;
use crate::device::{DType, Device, with_threads};
use crate::ops::copy::owned;
use crate::ops::linear::rounded;
use crate::ops::testing::{devices, on_vm, random, wide};

#[test]
fn squares_add_up_in_f64_to_the_same_bits_for_any_number_of_threads() {
    let x = random(&[100_003], 1);
    let want: f64 = wide(&x).iter().map(|v| v * v).sum();
    let sums = [1, 2, 3].map(|threads| with_threads(threads, || sum_of_squares(&x)).unwrap());
    assert!((sums[0] - want).abs() < 1e-12 * want);
    assert!(sums.iter().all(|s| *s == sums[0]));
}

#[test]
fn the_first_element_that_is_no_number_is_found() {
    let mut x = owned(&random(&[100_003], 1));
    let found = |x: &Tensor| devices().map(|device| first_non_finite(&x.to(&device)));
    assert_eq!(found(&x), [None; 2]);
    x.host_mut()[99_000] = f32::NEG_INFINITY;
    x.host_mut()[99_001] = f32::NAN;
    assert_eq!(found(&x), [Some((99_000, f32::NEG_INFINITY)); 2]);
    x.host_mut()[7] = f32::NAN;
    assert!(found(&x).iter().all(|f| matches!(f, Some((7, v)) if v.is_nan())));
}

/// A number as a tensor.
fn bits(x: u64) -> Tensor {
    Tensor::from_bytes(&Device::Cpu, &x.to_le_bytes(), &[8])
}

#[test]
fn kernels_add_up_to_the_cpu_s_bits_for_numbers_of_any_type() {
    for n in [1, 7, 8, 1000, 4095, 4096, 4097, 12_301] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let x = rounded(&random(&[n + 1], 1), dtype);
            let want = [0, 1].map(|first| sum_of_squares(&rounded(&x, DType::F32).view(first, &[n])));
            let sum = |x: &Tensor, first| bits(sum_of_squares(&x.view(first, &[n])).to_bits());
            let got = on_vm(|device| [0, 1].map(|first| sum(&x.to(device), first)).to_vec());
            assert_eq!(got[0].to_raw(), want[0].to_le_bytes(), "{n} of {dtype:?}");
            assert_eq!(got[1].to_raw(), want[1].to_le_bytes(), "{n} of {dtype:?}, not aligned");
        }
    }
}

#[test]
fn kernels_find_the_first_of_any_number_of_numbers_that_are_none() {
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for n in [1, 5, 2048, 5001] {
            for (first, at) in [(0, 0), (0, n / 2), (1, n - 1), (0, n)] {
                // The ones before the view and after it do not count.
                let mut x = owned(&random(&[n + 2], 1));
                x.host_mut()[..first].fill(f32::NAN);
                x.host_mut()[first + at..].fill(f32::INFINITY);
                let x = rounded(&x, dtype);
                let found = |device: &Device| first_non_finite(&x.to(device).view(first, &[n]));
                let got = on_vm(|device| vec![bits(found(device).map_or(u64::MAX, |(at, _)| at as u64))]);
                let want = if at < n { at as u64 } else { u64::MAX };
                assert_eq!(got[0].to_raw(), want.to_le_bytes(), "{at} of {n} of {dtype:?}");
            }
        }
    }
}
