use std::path::Path;

use super::*;
use crate::device::Device;
use crate::io::TensorFile;

/// The fixture is Pillow's work.
#[test]
fn resizing_is_pillows_bit_for_bit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocess/io.safetensors");
    let file = TensorFile::open(&path).unwrap();
    for name in ["down", "odd", "up", "mixed", "tall_only", "edges"] {
        let [image, want] = ["image", "resized"].map(|what| file.entry(&format!("{name}.{what}")).unwrap());
        let [h, w, _] = *image.shape() else { panic!("{name}") };
        let [height, width, _] = *want.shape() else { panic!("{name}") };
        // Twice the same picture: a batch is its pictures one by one.
        let images = Tensor::from_bytes(&Device::Cpu, &image.raw().repeat(2), &[2, h, w, 3]);
        assert!(bicubic(&images, height, width).to_raw() == want.raw().repeat(2), "{name}");
    }
}
