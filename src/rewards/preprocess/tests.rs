use serde_json::json;

use super::*;
use crate::device::Device;
use crate::io::TensorFile;
use crate::io::image::RgbImage;
use crate::ops::testing::devices;

fn fixtures() -> TensorFile {
    TensorFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocess/io.safetensors")).unwrap()
}

fn image(file: &TensorFile, name: &str) -> Tensor {
    let entry = file.entry(name).unwrap();
    let &[height, width, _] = entry.shape() else { panic!("{name}") };
    Tensor::from_bytes(&Device::Cpu, entry.raw(), &[1, height, width, 3])
}

#[test]
fn pixel_values_are_those_of_the_clip_processor() {
    let file = fixtures();
    let steps = Preprocess::openai(24);
    for name in ["clip_wide", "clip_tall", "clip_up", "clip_same"] {
        let found = steps.run(&image(&file, &format!("{name}.image")));
        let want = file.tensor(&format!("{name}.pixel_values"), &Device::Cpu).unwrap();
        assert_eq!(&found.shape()[1..], want.shape());
        // The processor computes in f32; a byte more or less would be 0.014.
        for (i, (a, b)) in found.to_host().iter().zip(want.to_host()).enumerate() {
            assert!((a - b).abs() < 1e-6, "{name} at {i}: {a}, expected {b}");
        }
    }
}

/// Height and width of the pictures of the fixture, which torchvision and Pillow made 16 x 16 of.
const PICTURES: [&str; 10] = ["1x1", "1x37", "37x4", "50x70", "61x37", "9x12", "16x16", "16x19", "16x9", "40x17"];

#[test]
fn every_program_s_way_gives_its_pixels_for_any_size_of_picture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip_rewards/preprocess.safetensors");
    let file = TensorFile::open(&path).unwrap();
    // One step of a byte is 0.0146: 8 bits are met exactly, and numbers as f32 allows.
    let ways = [
        ("open_clip", Pixels::Bytes(Preprocess::open_clip(16)), 1e-6),
        ("padded_pil", Pixels::Bytes(Preprocess::padded(16)), 1e-6),
        ("cropped", Pixels::Floats(Floats::cropped(16)), 1e-4),
        ("padded", Pixels::Floats(Floats::padded(16)), 1e-4),
        ("stretched", Pixels::Floats(Floats::stretched(16)), 1e-4),
    ];
    for (name, device) in PICTURES.into_iter().flat_map(|name| devices().map(|d| (name, d))) {
        let bytes = image(&file, &format!("{name}.image"));
        let (height, width) = (bytes.dim(1), bytes.dim(2));
        // Twice the same picture: a batch is its pictures one by one.
        let picture = RgbImage { width, height, data: bytes.to_raw() };
        let images = Images::from_pictures(vec![picture.clone(), picture], &device);
        for (way, pixels, bound) in &ways {
            let (found, want) =
                (pixels.of(&images, 0..2), file.tensor(&format!("{name}.{way}"), &Device::Cpu).unwrap());
            assert_eq!(found.shape(), [2, 3, 16, 16]);
            let worst =
                |found: &[f32]| found.iter().zip(want.to_host()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            for found in found.to_host().chunks(3 * 16 * 16) {
                assert!(worst(found) <= *bound, "{way} of {name} on {device:?}: off by {:e}", worst(found));
            }
        }
    }
}

#[test]
fn every_generation_of_the_config_says_the_same() {
    let numbers = json!({"size": 24, "crop_size": 24, "resample": 3, "do_center_crop": true});
    let edges = json!({"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "rescale_factor": 1.0 / 255.0,
                       "image_mean": OPENAI.0, "image_std": OPENAI.1});
    for config in [numbers, edges] {
        assert_eq!(Preprocess::parse(&config).unwrap(), Preprocess::openai(24));
    }
    let exact = json!({"size": {"height": 20, "width": 30}, "do_center_crop": false, "image_mean": [0.5, 0.5, 0.5]});
    let steps = Preprocess::parse(&exact).unwrap();
    assert_eq!((steps.resize, steps.crop, steps.mean), (Resize::Exact { height: 20, width: 30 }, (20, 30), [0.5; 3]));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for (config, expected) in [
        (json!({"size": {"longest_edge": 24}}), "key 'size' is {\"longest_edge\":24}, expected"),
        (json!({"size": 24, "crop_size": 32}), "key 'crop_size' is 32x32, larger"),
        (json!({"resample": 2}), "key 'resample' is 2"),
        (json!({"do_rescale": false}), "key 'do_rescale' is false"),
        (json!({"image_mean": [1, 2]}), "key 'image_mean' is [1,2], expected three numbers"),
        (json!({"image_std": [1, 0, 1]}), "key 'image_std' holds 0"),
    ] {
        let error = Preprocess::parse(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preprocessor_config.json");
    std::fs::write(&path, r#"{"size": 24}"#).unwrap();
    let error = Preprocess::load(folder.path(), 32).unwrap_err().to_string();
    assert!(error.contains("gives 24x24 pixels, the model takes 32x32"), "{error}");
}
