//! The whole transformer: the forward of a rollout, and the forward and backward of an update. Weights are random, of the true
//! shapes of Stable Diffusion 3.5 Medium.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use engine::device::philox::{Key, Purpose};
use engine::device::{Device, Tensor};
use engine::models::load_network;
use engine::models::lora::{AdapterBank, Adapters, Layout, Rows, Slot, Trained, select};
use engine::models::network::{Checkpointing, Condition};
use engine::ops::noise;
use half::bf16;
use serde_json::{Map, json};

use super::measure::{Session, Work};
use super::ops::Bench;

pub const ALL: [(&str, Bench); 1] = [("transformer", transformer)];

/// The part of `config.json` that has to do with shapes.
struct Config {
    layers: usize,
    dual: usize,
    head: usize,
    heads: usize,
    text: usize,
    pooled: usize,
    positions: usize,
}

const CHANNELS: usize = 16;
const PATCH: usize = 2;
const MEDIUM: Config = Config { layers: 24, dual: 13, head: 64, heads: 24, text: 4096, pooled: 2048, positions: 384 };
const SMALL: Config = Config { layers: 2, dual: 1, head: 64, heads: 1, text: 32, pooled: 32, positions: 16 };

/// Operations of a row at 512x512 with 205 text tokens: the linear layers, both kinds of attention, LoRA of rank 32.
const LINEAR: f64 = 1.917e12;
const ATTENTION: f64 = 0.307e12;
const LORA: f64 = 0.023e12;

impl Config {
    fn width(&self) -> usize {
        self.head * self.heads
    }

    fn json(&self) -> String {
        json!({
            "sample_size": 128, "patch_size": PATCH, "in_channels": CHANNELS, "out_channels": CHANNELS,
            "num_layers": self.layers, "attention_head_dim": self.head, "num_attention_heads": self.heads,
            "joint_attention_dim": self.text, "caption_projection_dim": self.width(),
            "pooled_projection_dim": self.pooled, "pos_embed_max_size": self.positions,
            "dual_attention_layers": (0..self.dual).collect::<Vec<_>>(), "qk_norm": "rms_norm",
        })
        .to_string()
    }

    /// Every tensor by its name in diffusers.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.width();
        let mut all = vec![
            ("pos_embed.pos_embed".to_string(), vec![1, self.positions * self.positions, d]),
            ("pos_embed.proj.weight".into(), vec![d, CHANNELS, PATCH, PATCH]),
            ("pos_embed.proj.bias".into(), vec![d]),
        ];
        let mut layer = |name: String, outputs: usize, inputs: usize| {
            all.extend([(format!("{name}.weight"), vec![outputs, inputs]), (format!("{name}.bias"), vec![outputs])]);
        };
        for (name, inputs) in [("timestep", 256), ("text", self.pooled)] {
            layer(format!("time_text_embed.{name}_embedder.linear_1"), d, inputs);
            layer(format!("time_text_embed.{name}_embedder.linear_2"), d, d);
        }
        layer("context_embedder".into(), d, self.text);
        layer("norm_out.linear".into(), 2 * d, d);
        layer("proj_out".into(), PATCH * PATCH * CHANNELS, d);
        let mut norms = Vec::new();
        for i in 0..self.layers {
            let (block, last, dual) = (format!("transformer_blocks.{i}"), i + 1 == self.layers, i < self.dual);
            layer(format!("{block}.norm1.linear"), if dual { 9 } else { 6 } * d, d);
            layer(format!("{block}.norm1_context.linear"), if last { 2 } else { 6 } * d, d);
            let joint = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
            for name in &joint[..if last { 7 } else { 8 }] {
                layer(format!("{block}.attn.{name}"), d, d);
            }
            for name in ["to_q", "to_k", "to_v", "to_out.0"].iter().filter(|_| dual) {
                layer(format!("{block}.attn2.{name}"), d, d);
            }
            for ff in ["ff", "ff_context"].iter().take(if last { 1 } else { 2 }) {
                layer(format!("{block}.{ff}.net.0.proj"), 4 * d, d);
                layer(format!("{block}.{ff}.net.2"), d, 4 * d);
            }
            norms.extend(["norm_q", "norm_k", "norm_added_q", "norm_added_k"].map(|n| format!("{block}.attn.{n}")));
            norms.extend(["norm_q", "norm_k"].iter().filter(|_| dual).map(|n| format!("{block}.attn2.{n}")));
        }
        all.extend(norms.into_iter().map(|name| (format!("{name}.weight"), vec![self.head])));
        all
    }

    /// Writes `config.json` and the weights, which keep the size of activations as trained ones do.
    fn write(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("config.json"), self.json())?;
        let tensors = self.tensors();
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
        }
        let mut header = serde_json::to_string(&header)?;
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let mut file = BufWriter::new(File::create(folder.join("diffusion_pytorch_model.safetensors"))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        // Drawn once and repeated; the length is prime, so that rows do not repeat.
        const TABLE: usize = 1_048_573;
        let normal = noise::normal(&Device::Cpu, &[Key::new(0, Purpose::ForwardNoise)], &[1, TABLE]).to_host();
        let mut last = (0.0, 0.0);
        let mut table: Vec<bf16> = Vec::new();
        for (name, shape) in &tensors {
            let of = match shape.len() {
                1 if name.contains("norm_") => (1.0, 0.1),
                1 | 3 => (0.0, 0.1),
                _ => (0.0, 1.0 / (shape[1..].iter().product::<usize>() as f32).sqrt()),
            };
            if of != last {
                (last, table) = (of, normal.iter().map(|v| bf16::from_f32(of.0 + of.1 * v)).collect());
            }
            let mut left = shape.iter().product::<usize>();
            let mut from = left % TABLE;
            while left > 0 {
                let part = &table[from..][..left.min(TABLE - from)];
                file.write_all(bytemuck::cast_slice(part))?;
                left -= part.len();
                from = 0;
            }
        }
        Ok(file.flush()?)
    }
}

fn transformer(s: &mut Session, scratch: Option<&Path>) -> Result<()> {
    let (config, rank) = if s.small { (SMALL, 4) } else { (MEDIUM, 32) };
    let (side, text, batches): (_, _, &[usize]) = if s.small { (8, 5, &[2]) } else { (64, 205, &[16, 2]) };
    let folder = scratch.map_or_else(tempfile::tempdir, tempfile::tempdir_in)?;
    config.write(folder.path())?;
    let network = load_network(folder.path(), &s.device, None)?;
    s.gpu.check()?;
    drop(folder);

    let modules = network.modules();
    let targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
    let selected = select(modules, &targets.map(|t| format!("attn.{t}")))?;
    let layout = Layout::selected(modules, &selected, rank);
    let mut bank = AdapterBank::new(Arc::new(layout.clone()), 2.0);
    let factors = s.single(&[layout.len()], 0.01);
    bank.set(Slot::Theta, factors);
    bank.copy(Slot::Old, Slot::Theta);

    for &b in batches {
        let x: [Tensor; 2] = std::array::from_fn(|_| s.single(&[b, CHANNELS, side, side], 1.0));
        let (prompt_embeds, pooled) = (s.normal(&[b, text, config.text], 1.0), s.normal(&[b, config.pooled], 1.0));
        let timestep = vec![500.0; b];
        let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
        let work = |flop: f64| Work { flop: b as f64 * flop, bytes: 0.0 };
        let policies = [
            ("base", None, Rows::all(None, b), LINEAR + ATTENTION),
            ("LoRA", Some(&bank), Rows::all(Some(Slot::Theta), b), LINEAR + ATTENTION + LORA),
            (
                "two LoRAs",
                Some(&bank),
                Rows::runs([(Some(Slot::Theta), b / 2), (Some(Slot::Old), b - b / 2)]),
                LINEAR + ATTENTION + LORA,
            ),
        ];
        for (name, bank, rows, flop) in &policies {
            let adapters = Adapters { bank: *bank, rows };
            let case = format!("forward, {name}, batch {b}");
            s.repeat(&case, work(*flop), 2, |i| drop(network.forward(&x[i], condition, &adapters)))?;
        }
        let rows = Rows::all(Some(Slot::Theta), b);
        let adapters = Adapters { bank: Some(&bank), rows: &rows };
        let mut grads = s.single(&[layout.len()], 1e-3);
        let train = 2.0 * LINEAR + 3.5 * ATTENTION + 3.0 * LORA;
        let kept = [
            (Checkpointing::None, train),
            (Checkpointing::Selective, train),
            (Checkpointing::Block, train + LINEAR + ATTENTION + LORA),
        ];
        for (keep, flop) in kept {
            s.repeat(&format!("train step, checkpointing {keep:?}, batch {b}"), work(flop), 2, |i| {
                let (velocity, saved) = network.forward_saved(&x[i], condition, &adapters, keep);
                let mut trained = Trained { bank: &bank, slot: Slot::Theta, grads: &mut grads };
                network.backward(&velocity, saved, &mut trained, false);
            })?;
        }
    }
    Ok(())
}
