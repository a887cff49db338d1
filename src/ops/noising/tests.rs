use super::*;
use crate::device::DType;
use crate::ops::copy::cast;
use crate::ops::testing::{check_precision, devices, on_vm, random, wide};

#[test]
fn each_row_is_mixed_by_its_own_time() {
    let (x0, noise) = (random(&[3, 2, 5], 1), random(&[3, 2, 5], 2));
    for device in devices() {
        let x = forward(&x0.to(&device), &noise.to(&device), &[0.0, 0.25, 1.0]).to_host();
        assert_eq!(x[..10], *x0.slice(0..1).host());
        assert_eq!(x[20..], *noise.slice(2..3).host());
        for (i, x) in x.iter().enumerate().take(20).skip(10) {
            assert_eq!(*x, 0.75 * x0.host()[i] + 0.25 * noise.host()[i]);
        }
    }
}

#[test]
fn kernels_mix_as_the_cpu_does_alone_and_among_nine() {
    let t: Vec<f32> = (0..9).map(|i| 0.07 + 0.1 * i as f32).collect();
    // Samples that are whole accesses, and samples that are not.
    for per in [7, 1032] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let [x0, noise] = [1, 2].map(|seed| cast(&random(&[9, per], seed), dtype));
            let got = on_vm(|device| {
                let [x0, noise] = [&x0, &noise].map(|x| x.to(device));
                vec![forward(&x0, &noise, &t), forward(&x0.slice(6..7), &noise.slice(6..7), &t[6..7])]
            });
            assert_eq!(got[0].slice(6..7).to_raw(), got[1].to_raw());
            let [x0, noise] = [&x0, &noise].map(|x| cast(x, DType::F32));
            let want = forward(&x0, &noise, &t);
            assert_eq!(got[0].to_raw(), cast(&want, dtype).to_raw(), "{per} of {dtype:?}");
            let mix = |(i, (x0, e)): (usize, (f64, f64))| {
                let t = f64::from(t[i / per]);
                (1.0 - t) * x0 + t * e
            };
            let exact: Vec<f64> = wide(&x0).into_iter().zip(wide(&noise)).enumerate().map(mix).collect();
            check_precision("noising", &got[0], &want, &exact);
        }
    }
}
