//! The tiny model's autoencoder at 64x64 (criterion's "elements" are images). `ENGINE_VAE` names another folder.

use std::path::PathBuf;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use engine::device::{Device, Tensor};
use engine::models::autoencoder::Autoencoder;

fn bench(c: &mut Criterion) {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-sd3/vae");
    let folder = std::env::var_os("ENGINE_VAE").map_or(PathBuf::from(tiny), PathBuf::from);
    let model = match Autoencoder::load(&folder, &Device::Cpu, None) {
        Ok(model) => model,
        Err(e) => return eprintln!("nothing to measure: {e:#}"),
    };
    let mut group = c.benchmark_group("autoencoder");
    for batch in [1, 16, 64] {
        let side = 64 / model.config().downscale();
        let latent = Tensor::zeros(&Device::Cpu, &[batch, model.config().latent_channels, side, side]);
        let image = Tensor::zeros(&Device::Cpu, &[batch, 64, 64, model.config().in_channels]);
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::new("decode", batch), |bench| bench.iter(|| model.decode(&latent)));
        group.bench_function(BenchmarkId::new("encode", batch), |bench| bench.iter(|| model.encode(&image)));
    }
    group.finish();
}

criterion_group!(benches, bench);
// As the commands do: the ops' own threads run the whole.
fn main() {
    engine::device::with_threads(0, benches).expect("threads");
}
