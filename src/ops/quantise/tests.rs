use super::*;
use crate::ops::copy::cast;
use crate::ops::testing::{devices, on_vm, random};

#[test]
fn numbers_become_bytes_limited_to_the_range_and_rounded_half_to_even() {
    let at = |byte: f32| byte / 255.0 * 2.0 - 1.0;
    let x = [-3.0, at(7.0), f32::NEG_INFINITY, 1.5, at(7.4), f32::INFINITY, 0.0, at(7.6), -1.0];
    for device in devices() {
        let bytes = forward(&Tensor::from_slice(&device, &x, &[1, 3, 3]));
        // 0.0 is 127.5, a tie whose even neighbour is 128.
        assert_eq!((bytes.shape(), bytes.to_raw()), (&[1, 3, 3][..], vec![0, 7, 0, 255, 7, 255, 128, 8, 0]));
        let none = Tensor::from_slice(&device, &[f32::NAN], &[1]);
        assert_eq!(forward(&none).to_raw(), [0]);
    }
}

#[test]
fn kernels_give_the_cpu_s_bytes() {
    for n in [1, 7, 1024, 4099] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let x = cast(&random(&[n], 3), dtype);
            let got = on_vm(|device| vec![forward(&x.to(device))]);
            assert_eq!(got[0].to_raw(), forward(&cast(&x, DType::F32)).to_raw(), "{n} of {dtype:?}");
        }
    }
}
