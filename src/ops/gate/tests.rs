use super::*;
use crate::device::{DType, Tensor};
use crate::ops::copy::cast;
use crate::ops::testing::{check_gradient, check_precision, devices, on_vm, random, wide};

/// The forward is [`linear`](crate::ops::linear)'s.
#[test]
fn the_gradient_is_that_of_a_gated_residual() {
    let (b, n, d) = (2, 3, 5);
    let (x, y, m, dx) = (random(&[b, n, d], 1), random(&[b, n, d], 2), random(&[b, 2 * d], 3), random(&[b, n, d], 4));
    let (x64, m64) = (wide(&x), wide(&m));
    let reference = |y: &[f64]| -> Vec<f64> {
        (0..y.len()).map(|i| x64[i] + y[i] * m64[(i / (n * d) * 2 + 1) * d + i % d]).collect()
    };
    for device in devices() {
        let modulation = m.to(&device);
        let dy = backward(&dx.to(&device), Chunk { modulation: &modulation, index: 1 });
        check_gradient(&dy, &wide(&y), &dx, reference);
    }
}

/// Rows that are whole accesses, rows that are not, and gates that do not lie at 16 bytes.
#[test]
fn kernels_multiply_as_the_cpu_does() {
    for (b, n, d) in [(1, 1, 1), (2, 5, 7), (2, 3, 12), (2, 21, 104)] {
        let (dx, m) = (random(&[b, n, d], 1), random(&[b, 3 * d], 2));
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let (dx, m) = (cast(&dx, dtype), cast(&m, dtype));
            let of = |dx: &Tensor, m: &Tensor| backward(dx, Chunk { modulation: m, index: 1 });
            let got = &on_vm(|device| vec![of(&dx.to(device), &m.to(device))])[0];
            let (dx, m) = (cast(&dx, DType::F32), cast(&m, DType::F32));
            let want = of(&dx, &m);
            if dtype == DType::F32 {
                assert_eq!(got.to_raw(), want.to_raw(), "{b}, {n}, {d}");
            } else {
                let (dx, m) = (wide(&dx), wide(&m));
                let exact: Vec<f64> = (0..dx.len()).map(|i| dx[i] * m[(i / (n * d) * 3 + 1) * d + i % d]).collect();
                check_precision(&format!("gate {dtype:?}"), got, &want, &exact);
                assert_eq!(got.to_raw(), cast(&want, dtype).to_raw(), "{b}, {n}, {d} {dtype:?}");
            }
        }
    }
}

#[test]
fn a_sample_alone_has_the_bits_it_has_among_nine() {
    let (dx, m) = (random(&[9, 5, 12], 1), random(&[9, 24], 2));
    let got = on_vm(|device| {
        let of = |r: std::ops::Range<usize>| {
            let m = m.slice(r.clone()).to(device);
            backward(&dx.slice(r).to(device), Chunk { modulation: &m, index: 1 })
        };
        vec![of(0..9), of(6..7)]
    });
    assert_eq!(got[0].slice(6..7).to_raw(), got[1].to_raw());
}
