//! One of the 24 blocks of SD3.5's third text encoder (T5-XXL, 193 M parameters a block), in prompts per second.

mod random;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use engine::device::Device;
use engine::models::t5::T5;

const WIDTH: usize = 4096;
const INNER: usize = 10240;

fn bench(c: &mut Criterion) {
    let tensors = [
        ("shared.weight", vec![1000, WIDTH]),
        ("encoder.final_layer_norm.weight", vec![WIDTH]),
        ("encoder.block.0.layer.0.layer_norm.weight", vec![WIDTH]),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", vec![32, 64]),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", vec![WIDTH, WIDTH]),
        ("encoder.block.0.layer.0.SelfAttention.k.weight", vec![WIDTH, WIDTH]),
        ("encoder.block.0.layer.0.SelfAttention.v.weight", vec![WIDTH, WIDTH]),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", vec![WIDTH, WIDTH]),
        ("encoder.block.0.layer.1.layer_norm.weight", vec![WIDTH]),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", vec![INNER, WIDTH]),
        ("encoder.block.0.layer.1.DenseReluDense.wi_1.weight", vec![INNER, WIDTH]),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", vec![WIDTH, INNER]),
    ]
    .map(|(name, shape)| (name.to_string(), shape));
    let config = r#"{"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 1, "vocab_size": 1000,
        "feed_forward_proj": "gated-gelu"}"#;
    let folder = random::folder(config, &tensors);
    let model = T5::load(folder.path(), &Device::Cpu).expect("the model just written");
    let mut group = c.benchmark_group("t5");
    group.sample_size(10);
    for tokens in [77u32, 256] {
        let ids = [(0..tokens).collect::<Vec<u32>>()];
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("xxl_block_f16", tokens), |b| b.iter(|| model.forward(&ids)));
    }
    group.finish();
}

criterion_group!(benches, bench);
// As the commands do: the ops' own threads run the whole.
fn main() {
    engine::device::with_threads(0, benches).expect("threads");
}
