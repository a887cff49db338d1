//! The tiny model's transformer: a forward of a rollout batch, and forward with backward of a training batch, in samples.

use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group};
use engine::device::{DType, Device, Tensor};
use engine::models::load_network;
use engine::models::lora::{AdapterBank, Adapters, Layout, Rows, Slot, Trained, select};
use engine::models::network::{Checkpointing, Condition};

const BATCH: usize = 32;
/// CLIP's 16 and 16 of T5, as in configs/tiny.
const TEXT_TOKENS: usize = 32;
const RANK: usize = 16;

fn bench(c: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd3/transformer");
    let mut group = c.benchmark_group("mmdit/tiny");
    for (name, compute) in [("f32", None), ("bf16", Some(DType::Bf16))] {
        let network = load_network(&folder, &Device::Cpu, compute).unwrap();
        let (sizes, modules) = (network.sizes(), network.modules());
        let zeros = |shape: &[usize]| Tensor::zeros(&Device::Cpu, shape);
        let x = |n: usize| zeros(&[n, sizes.channels, sizes.own_latent, sizes.own_latent]);
        let (prompts, pooled) = (zeros(&[3 * BATCH, TEXT_TOKENS, sizes.text]), zeros(&[3 * BATCH, sizes.pooled]));
        let condition = |n: usize| (vec![500.0; n], prompts.slice(0..n), pooled.slice(0..n));
        let targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
        let selected = select(modules, &targets.map(|t| format!("attn.{t}"))).unwrap();
        let layout = Layout::selected(modules, &selected, RANK);
        let theta = AdapterBank::initial(&layout, modules, 1, &Device::Cpu);
        let mut bank = AdapterBank::new(Arc::new(layout), 2.0);
        bank.set(Slot::Theta, theta);
        bank.copy(Slot::Old, Slot::Theta);

        // One policy, as a rollout has; and all that an update compares: trained, reference, lagged.
        let base = Rows::all(None, BATCH);
        let one = Rows::all(Some(Slot::Theta), BATCH);
        let three = Rows::runs([(Some(Slot::Theta), BATCH), (None, BATCH), (Some(Slot::Old), BATCH)]);
        group.throughput(Throughput::Elements(BATCH as u64));
        for (what, rows) in [("forward", &base), ("forward with LoRA", &one), ("forward of three policies", &three)] {
            let (x, (timestep, prompt_embeds, pooled)) = (x(rows.count()), condition(rows.count()));
            let condition =
                Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
            let adapters = Adapters { bank: Some(&bank), rows };
            group.bench_function(format!("{name}/{what}"), |b| b.iter(|| network.forward(&x, condition, &adapters)));
        }
        let (x, (timestep, prompt_embeds, pooled)) = (x(three.count()), condition(three.count()));
        let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
        for keep in [Checkpointing::None, Checkpointing::Selective, Checkpointing::Block] {
            group.bench_function(format!("{name}/update, checkpointing {keep:?}"), |b| {
                b.iter(|| {
                    let adapters = Adapters { bank: Some(&bank), rows: &three };
                    let (velocity, saved) = network.forward_saved(&x, condition, &adapters, keep);
                    let mut grads = zeros(&[bank.layout().len()]);
                    let mut trained = Trained { bank: &bank, slot: Slot::Theta, grads: &mut grads };
                    network.backward(&velocity.slice(0..BATCH), saved, &mut trained, false);
                    grads
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
// As the commands do: the ops' own threads run the whole.
fn main() {
    engine::device::with_threads(0, benches).expect("threads");
}
