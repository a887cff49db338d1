//! The tiny model's transformer: a forward of a rollout batch, and forward with backward of a training batch.

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::device::Tensor;
use engine::models::lora::{Adapter, select};
use engine::models::mmdit::{Checkpointing, Condition, Mmdit};

const BATCH: usize = 32;
/// CLIP's 16 and 16 of T5, as in configs/tiny.
const TEXT_TOKENS: usize = 32;

fn bench(c: &mut Criterion) {
    let model = Mmdit::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd3/transformer")).unwrap();
    let config = &model.config;
    let x = Tensor::zeros(&[BATCH, config.in_channels, config.sample_size, config.sample_size]);
    let prompts = Tensor::zeros(&[BATCH, TEXT_TOKENS, config.joint_attention_dim]);
    let pooled = Tensor::zeros(&[BATCH, config.pooled_projection_dim]);
    let condition = Condition { timestep: &[500.0; BATCH], prompt_embeds: &prompts, pooled_prompt_embeds: &pooled };
    let targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
    let selected = select(model.modules(), &targets.map(|t| format!("attn.{t}"))).unwrap();
    let adapter = Adapter::init(model.modules(), &selected, 32, 64.0, 1);

    let mut group = c.benchmark_group("mmdit/tiny");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("forward", |b| b.iter(|| model.forward(&x, condition, None)));
    group.bench_function("forward with LoRA", |b| b.iter(|| model.forward(&x, condition, Some(&adapter))));
    for policy in [Checkpointing::None, Checkpointing::Selective, Checkpointing::Block] {
        group.bench_function(format!("forward and backward, checkpointing {policy:?}"), |b| {
            b.iter(|| {
                let (velocity, saved) = model.forward_saved(&x, condition, &adapter, policy);
                let mut grads = adapter.zeros_like();
                model.backward(&velocity, saved, &adapter, &mut grads, false);
                grads
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
