use std::path::{Path, PathBuf};

use engine::device::Device;
use engine::io::TensorFile;
use engine::io::image::read_rgb;
use engine::models::ppocr::{Detector, Recogniser};
use engine::rewards::ocr::{Channels, Ocr};
use serde_json::Value;

use super::{devices, fixture, read, relative_error};

/// f32 against f32: rounding of some dozens of layers in another order.
const BOUND: f64 = 1e-5;

#[test]
fn the_networks_match_torch() {
    let folder = fixture("ocr/tiny");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    for device in devices() {
        let detector = Detector::load(&folder.join("det.safetensors"), &device).unwrap();
        let recogniser = Recogniser::load(&folder.join("rec.safetensors"), &device).unwrap();
        for (name, got, want) in [
            ("det", detector.forward(&read(&io, "pixels").to(&device)), "probabilities"),
            ("rec", recogniser.forward(&read(&io, "lines").to(&device)), "logits"),
        ] {
            let want = read(&io, want);
            assert_eq!(got.shape(), want.shape());
            let error = relative_error(&got, &want);
            println!("ocr/tiny {name} on {device:?}: {error:.1e}");
            assert!(error <= BOUND, "{name} on {device:?}: {error:e}");
        }
    }
}

/// Names the folder of the converted weights, if they are not in models/ppocr-en.
const FOLDER: &str = "ENGINE_PPOCR";

/// The folder of the real weights, which are not part of the repository.
pub fn real() -> Option<PathBuf> {
    let named = std::env::var_os(FOLDER).map(PathBuf::from);
    let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ppocr-en"));
    if folder.join("det.safetensors").is_file() {
        return Some(folder);
    }
    println!(
        "skipped: there is no {} (tools/fetch_ppocr.sh writes it); {FOLDER} names another folder",
        folder.display()
    );
    None
}

#[test]
fn with_the_real_weights_pictures_are_read_and_rewarded_as_by_paddleocr() {
    let Some(folder) = real() else { return };
    let expected: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture("ocr/expected.json")).unwrap()).unwrap();
    assert!(expected.len() >= 24);
    for (channels, key) in [(Channels::Rgb, "rgb"), (Channels::Bgr, "bgr")] {
        let reward = Ocr::load(&folder, channels, &Device::Cpu).unwrap();
        for case in &expected {
            let name = case["picture"].as_str().unwrap();
            let image = read_rgb(&fixture("ocr/pictures").join(name)).unwrap();
            let (lines, want) = (reward.read(&image), &case[key]);
            let quads: Vec<Value> = lines.iter().map(|l| serde_json::json!(l.quad)).collect();
            let texts: Vec<&str> = lines.iter().map(|l| l.text.as_str()).collect();
            let wanted = want["lines"].as_array().unwrap();
            assert_eq!(texts, wanted.iter().map(|l| l["text"].as_str().unwrap()).collect::<Vec<_>>(), "{name} {key}");
            assert_eq!(quads, wanted.iter().map(|l| l["quad"].clone()).collect::<Vec<_>>(), "{name} {key}");
            for (line, wanted) in lines.iter().zip(wanted) {
                let (got, want) = (f64::from(line.confidence), wanted["confidence"].as_f64().unwrap());
                // Where corners of a crop fall between two positions that OpenCV tells apart, either may be taken.
                assert!((got - want).abs() < 5e-4, "{name} {key} '{}': {got}, not {want}", line.text);
            }
            let got = reward.value(&image, case["prompt"].as_str().unwrap()).unwrap();
            assert_eq!(got, want["reward"].as_f64().unwrap(), "{name} {key}");
        }
    }
}
