use super::*;
use crate::device::Device;

#[test]
fn numbers_become_bytes_limited_to_the_range_and_rounded_half_to_even() {
    let at = |byte: f32| byte / 255.0 * 2.0 - 1.0;
    let x = [-3.0, at(7.0), f32::NEG_INFINITY, 1.5, at(7.4), f32::INFINITY, 0.0, at(7.6), -1.0];
    let bytes = forward(&Tensor::from_slice(&Device::Cpu, &x, &[1, 3, 3]));
    // 0.0 is 127.5, a tie whose even neighbour is 128.
    assert_eq!((bytes.shape(), bytes.to_raw()), (&[1, 3, 3][..], vec![0, 7, 0, 255, 7, 255, 128, 8, 0]));
}
