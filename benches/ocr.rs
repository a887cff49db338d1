//! The reward `ocr` on the pictures of its tests, a picture at a time. `ENGINE_PPOCR` names another folder of weights;
//! `tools/oracle/ocr.py --time THREADS` is the same for PaddleOCR on ONNX Runtime.

use std::path::PathBuf;

use criterion::{BenchmarkId, Criterion, criterion_group};
use engine::io::image::read_rgb;
use engine::rewards::ocr::{Channels, Ocr};

fn bench(c: &mut Criterion) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("ENGINE_PPOCR").map_or(root.join("models/ppocr-en"), PathBuf::from);
    let reward = match Ocr::load(&folder, Channels::Rgb, &Device::Cpu) {
        Ok(reward) => reward,
        Err(e) => return eprintln!("nothing to measure: {e:#}"),
    };
    let mut group = c.benchmark_group("ocr");
    group.sample_size(10);
    let files = std::fs::read_dir(root.join("tests/fixtures/ocr/pictures")).expect("the pictures");
    let mut paths: Vec<PathBuf> = files.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let image = read_rgb(&path).expect("a picture");
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        group.bench_function(BenchmarkId::new("read", name), |bench| bench.iter(|| reward.read(&image)));
    }
    group.finish();
}

criterion_group!(benches, bench);
// As the commands do: the ops' own threads run the whole.
fn main() {
    engine::device::with_threads(0, benches).expect("threads");
}
