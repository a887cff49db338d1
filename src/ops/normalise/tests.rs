use super::*;
use crate::device::Device;
use crate::ops::testing::{devices, on_vm};

#[test]
fn a_crop_is_scaled_shifted_and_its_channels_laid_apart() {
    let bytes: Vec<u8> = (0..2 * 3 * 4 * 3).map(|i| (i * 37 % 256) as u8).collect();
    let (mean, std) = ([0.5, 0.25, 0.1], [0.2, 0.3, 0.4]);
    for device in devices() {
        let images = Tensor::from_bytes(&device, &bytes, &[2, 3, 4, 3]);
        let out = forward(&images, [1, 2], [2, 2], mean, std);
        assert_eq!(out.shape(), [2, 3, 2, 2]);
        for (at, found) in out.to_host().into_iter().enumerate() {
            let (image, c, y, x) = (at / 12, at / 4 % 3, at / 2 % 2, at % 2);
            let byte = f64::from(bytes[((image * 3 + 1 + y) * 4 + 2 + x) * 3 + c]);
            assert_eq!(found, ((byte / 255.0 - mean[c]) / std[c]) as f32);
        }
    }
}

#[test]
fn a_kernel_gives_the_cpu_s_bits_for_rows_longer_than_a_block() {
    let bytes: Vec<u8> = (0..2 * 5 * 301 * 3).map(|i| (i * 37 % 251) as u8).collect();
    let images = Tensor::from_bytes(&Device::Cpu, &bytes, &[2, 5, 301, 3]);
    let of = |images: &Tensor| forward(images, [1, 3], [3, 277], [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]);
    assert_eq!(on_vm(|device| vec![of(&images.to(device))])[0].to_raw(), of(&images).to_raw());
}
