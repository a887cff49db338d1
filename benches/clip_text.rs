//! SD3.5's first text encoder (CLIP-L, 123 M parameters), in prompts per second.

mod random;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use engine::device::Device;
use engine::models::clip::ClipText;

const WIDTH: usize = 768;
const INNER: usize = 3072;
const LAYERS: usize = 12;

fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("text_model.embeddings.token_embedding.weight".to_string(), vec![49408, WIDTH]),
        ("text_model.embeddings.position_embedding.weight".to_string(), vec![77, WIDTH]),
        ("text_projection.weight".to_string(), vec![WIDTH, WIDTH]),
    ];
    let mut pair = |name: String, shape: &[usize]| {
        all.push((format!("{name}.weight"), shape.to_vec()));
        all.push((format!("{name}.bias"), shape[..1].to_vec()));
    };
    pair("text_model.final_layer_norm".into(), &[WIDTH]);
    for i in 0..LAYERS {
        let layer = format!("text_model.encoder.layers.{i}");
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            pair(format!("{layer}.self_attn.{name}"), &[WIDTH, WIDTH]);
        }
        pair(format!("{layer}.mlp.fc1"), &[INNER, WIDTH]);
        pair(format!("{layer}.mlp.fc2"), &[WIDTH, INNER]);
        pair(format!("{layer}.layer_norm1"), &[WIDTH]);
        pair(format!("{layer}.layer_norm2"), &[WIDTH]);
    }
    all
}

fn bench(c: &mut Criterion) {
    let config = r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768, "eos_token_id": 2}"#;
    let folder = random::folder(config, &tensors());
    let model = ClipText::load(folder.path(), &Device::Cpu).expect("the model just written");
    let mut group = c.benchmark_group("clip_text");
    group.sample_size(10);
    for prompts in [1, 8] {
        let ids = vec![(0..77).collect::<Vec<u32>>(); prompts];
        group.throughput(Throughput::Elements(prompts as u64));
        group.bench_function(BenchmarkId::new("l_f16", prompts), |b| b.iter(|| model.forward(&ids)));
    }
    group.finish();
}

criterion_group!(benches, bench);
// As the commands do: the ops' own threads run the whole.
fn main() {
    engine::device::with_threads(0, benches).expect("threads");
}
