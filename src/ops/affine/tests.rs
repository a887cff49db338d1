use super::*;
use crate::device::Device;

#[test]
fn elements_are_shifted_scaled_shifted_and_limited_in_that_order() {
    let x = Tensor::from_slice(&Device::Cpu, &[-2.0, 0.0, 1.0, 50.0], &[4]);
    let map = Affine { before: 1.0, scale: 2.0, after: -0.5, limits: [-2.0, 10.0] };
    assert_eq!(forward(&x, map).host(), [-2.0, 1.5, 3.5, 10.0]);
    assert_eq!(forward(&x, Affine::default()).host(), x.host());
}
