use super::*;
use crate::device::Device;
use crate::io::TensorFile;
use crate::ops::testing::{bits, check_batch_invariance, devices, fixture, on_vm, random};

/// The fixture is Pillow's work.
#[test]
fn resizing_is_pillows_bit_for_bit() {
    let path = fixture("preprocess/io.safetensors");
    let file = TensorFile::open(&path).unwrap();
    for name in ["down", "odd", "up", "mixed", "tall_only", "edges"] {
        let [image, want] = ["image", "resized"].map(|what| file.entry(&format!("{name}.{what}")).unwrap());
        let [h, w, _] = *image.shape() else { panic!("{name}") };
        let [height, width, _] = *want.shape() else { panic!("{name}") };
        // Twice the same picture: a batch is its pictures one by one.
        for device in devices() {
            let images = Tensor::from_bytes(&device, &image.raw().repeat(2), &[2, h, w, 3]);
            assert!(bicubic(&images, height, width).to_raw() == want.raw().repeat(2), "{name} on {device:?}");
        }
    }
}

#[test]
fn a_kernel_gives_the_cpu_s_bytes_in_either_order_of_passes() {
    // The extremes, so that sums leave the range of a byte on both sides.
    let picture = |h: usize, w: usize| -> Vec<u8> {
        (0..2 * h * w * 3).map(|i| [0, 255, 128, 255, 0, 0, 7][i * i % 7]).collect()
    };
    for ([h, w], [height, width]) in [([9, 70], [3, 5]), ([70, 9], [5, 11]), ([8, 8], [8, 8]), ([1, 300], [2, 90])] {
        let run =
            |device: &Device| vec![bicubic(&Tensor::from_bytes(device, &picture(h, w), &[2, h, w, 3]), height, width)];
        assert_eq!(on_vm(run)[0].to_raw(), run(&Device::Cpu)[0].to_raw(), "{h}x{w} to {height}x{width}");
    }
}

#[test]
fn bilinear_places_lie_between_pixel_centres_and_stop_at_the_edge() {
    let line = Tensor::from_slice(&Device::Cpu, &[0.0, 4.0, 8.0], &[1, 1, 3, 1]);
    assert_eq!(bilinear(&line, 1, 6).to_host(), [0.0, 1.0, 3.0, 5.0, 7.0, 8.0]);
    assert_eq!(bilinear(&line, 2, 2).to_host(), [1.0, 7.0, 1.0, 7.0]);
    let square = Tensor::from_slice(&Device::Cpu, &[0.0, 1.0, 2.0, 3.0], &[1, 2, 2, 1]);
    assert_eq!(bilinear(&square, 1, 1).to_host(), [1.5]);
    for (channels, to) in [(3, [7, 5]), (8, [2, 9]), (4, [4, 6])] {
        let x = random(&[2, 4, 6, channels], 2);
        let [on_cpu, on_gpu] = devices().map(|device| bits(&bilinear(&x.to(&device), to[0], to[1])));
        assert!(on_cpu == on_gpu, "{channels} channels to {to:?}: a GPU gives other bits");
    }
    let x = random(&[9, 3, 4, 2], 1);
    check_batch_invariance("bilinear", |samples| bilinear(&x.slice(samples), 5, 3));
}
