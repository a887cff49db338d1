//! A picture to score, a PNG or a JPEG.
#![no_main]

use engine::io::image::read_rgb;
use engine_fuzz::{check, folder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = folder().join("a.png");
    std::fs::write(&path, data).unwrap();
    if let Some(image) = check(read_rgb(&path)) {
        assert!(image.width > 0 && image.height > 0);
        assert_eq!(image.data.len(), image.width * image.height * 3);
    }
});
