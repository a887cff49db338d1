use std::path::Path;

use serde_json::Value;

use super::*;
use crate::device::Device;
use crate::io::{TensorFile, read_json};

/// The picture a case of `tests/fixtures/jpeg.json` describes; its `formulas` say how.
fn picture(case: &Value, stored: &TensorFile) -> RgbImage {
    let number = |key: &str| case[key].as_u64().unwrap() as usize;
    if case["kind"] == "stored" {
        let entry = stored.entry(case["tensor"].as_str().unwrap()).unwrap();
        return RgbImage { width: entry.shape()[1], height: entry.shape()[0], data: entry.raw().to_vec() };
    }
    let (width, height) = (number("width"), number("height"));
    let mut state = case["seed"].as_u64().unwrap_or(0) as u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut data = Vec::new();
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        data.extend(match case["kind"].as_str().unwrap() {
            "constant" => [0, 1, 2].map(|c| case["rgb"][c].as_u64().unwrap() as u8),
            "gradient" => [(4 * x) as u8, (4 * y) as u8, 128],
            "quadratic" => [(x * x + y) as u8, (x * y / 3) as u8, (x + y * y / 2) as u8],
            "lcg" => [next(), next(), next()],
            kind => panic!("unknown kind {kind}"),
        });
    }
    RgbImage { width, height, data }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[test]
fn files_are_those_of_pillow_byte_for_byte() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let stored = TensorFile::open(&fixtures.join("preprocess/io.safetensors")).unwrap();
    let cases: Value = read_json(&fixtures.join("jpeg.json")).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let file = encode(&picture(case, &stored), case["quality"].as_f64().unwrap() as f32).unwrap();
        let found = (file.len() as u64, u64::from(crc32(&file)));
        assert_eq!(found, (case["bytes"].as_u64().unwrap(), case["crc32"].as_u64().unwrap()), "{case}");
    }
}

#[test]
fn the_published_sizes_are_met() {
    let flat = RgbImage { width: 512, height: 512, data: vec![127; 512 * 512 * 3] };
    let slope = (0..64 * 64).flat_map(|i| [4 * (i % 64) as u8, 4 * (i / 64) as u8, 128]).collect();
    let images = [flat, RgbImage { width: 64, height: 64, data: slope }];
    let values = |reward: Jpeg| {
        images.clone().map(|p| reward.score(&Images::from_pictures(vec![p], &Device::Cpu), &[]).unwrap()[0].value)
    };
    assert_eq!(values(Jpeg::Incompressibility), [4.722, 1.361]);
    assert_eq!(values(Jpeg::Compressibility), [-4.722 / 500.0, -1.361 / 500.0]);
}

#[test]
fn an_empty_picture_is_refused() {
    assert!(encode(&RgbImage { width: 0, height: 4, data: vec![] }, QUALITY).unwrap_err().to_string().contains("0x4"));
}
