use super::*;
use crate::device::{DType, Device};
use crate::ops::copy::cast;
use crate::ops::testing::{devices, on_vm, random};

#[test]
fn elements_are_shifted_scaled_shifted_and_limited_in_that_order() {
    for device in devices() {
        let x = Tensor::from_slice(&device, &[-2.0, 0.0, 1.0, 50.0], &[4]);
        let map = Affine { before: 1.0, scale: 2.0, after: -0.5, limits: [-2.0, 10.0] };
        assert_eq!(forward(&x, map).to_host(), [-2.0, 1.5, 3.5, 10.0]);
        assert_eq!(forward(&x, Affine::default()).to_host(), x.to_host());
        let none = Tensor::from_slice(&device, &[f32::NAN], &[1]);
        assert!(forward(&none, map).to_host()[0].is_nan());
    }
}

#[test]
fn kernels_give_the_cpu_s_bits_rounded_once() {
    let map = Affine { before: 0.3, scale: 1.7, after: -0.2, limits: [-1.5, 2.0] };
    for n in [1, 7, 1024, 4099] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let x = cast(&random(&[n], 3), dtype);
            let got = on_vm(|device| vec![forward(&x.to(device), map)]);
            let want = forward(&cast(&x, DType::F32), map);
            assert_eq!(got[0].to_raw(), cast(&want, dtype).to_raw(), "{n} of {dtype:?}");
        }
    }
}

#[test]
fn a_gradient_is_scaled_inside_the_range_and_stopped_outside() {
    for device in devices() {
        let x = Tensor::from_slice(&device, &[-4.0, -1.75, 0.0, 4.25, 5.0, f32::NAN], &[6]);
        let map = Affine { before: 1.0, scale: 2.0, after: -0.5, limits: [-2.0, 10.0] };
        let mut d = Tensor::from_slice(&device, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[6]);
        backward(&mut d, &x, map);
        assert_eq!(d.to_host(), [0.0, 4.0, 6.0, 8.0, 0.0, 0.0]);
    }
}

#[test]
fn kernels_give_the_cpu_s_gradients_rounded_once() {
    let map = Affine { before: 0.3, scale: 1.7, after: -0.2, limits: [-1.5, 2.0] };
    for (n, dtype) in [1, 1024, 4099].into_iter().flat_map(|n| [DType::F32, DType::F16, DType::Bf16].map(|t| (n, t))) {
        let [x, d] = [3, 4].map(|seed| cast(&random(&[n], seed), dtype));
        let got = on_vm(|device| {
            let mut d = d.to(device);
            backward(&mut d, &x.to(device), map);
            vec![d]
        });
        let mut want = Tensor::from_slice(&Device::Cpu, &d.to_host(), &[n]);
        backward(&mut want, &cast(&x, DType::F32), map);
        assert_eq!(got[0].to_raw(), cast(&want, dtype).to_raw(), "{n} of {dtype:?}");
    }
}
