//! One forward of Stable Diffusion 3.5 Medium's transformer at its true size: 256x256 pixels, 205 text tokens.
//!
//!     python tools/full_size.py --out DIR && cargo bench --bench full_size -- DIR [RUNS]

use std::path::Path;
use std::time::Instant;

use engine::device::philox::{Key, Purpose};
use engine::device::{Tensor, pool_stats};
use engine::models::mmdit::{Condition, Mmdit};

/// Latent side (256 pixels by a factor of 8) and text tokens (CLIP's 77 and 128 of T5).
const SIDE: usize = 32;
const TEXT: usize = 205;

fn random(shape: &[usize], prompt: u32) -> Tensor {
    let mut t = Tensor::scratch(shape);
    Key { prompt, ..Key::new(0, Purpose::ForwardNoise) }.normal(t.data_mut());
    t
}

/// A memory figure of this process from /proc, in GB.
fn memory(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
    let kib: f64 = line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().unwrap_or(f64::NAN);
    kib * 1024.0 / 1e9
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(folder) = args.first() else {
        println!("full_size: no folder given, nothing measured; see the head of benches/full_size.rs");
        return Ok(());
    };
    let runs: usize = args.get(1).map_or(Ok(3), |n| n.parse())?;
    let start = Instant::now();
    let model = Mmdit::load(Path::new(folder))?;
    println!("load {:.2} s (every weight is read once, to find what is not finite)", start.elapsed().as_secs_f64());

    let config = &model.config;
    let latent = random(&[1, config.in_channels, SIDE, SIDE], 0);
    let prompt_embeds = random(&[1, TEXT, config.joint_attention_dim], 1);
    let pooled = random(&[1, config.pooled_projection_dim], 2);
    for _ in 0..runs {
        let start = Instant::now();
        let condition = Condition { timestep: &[500.0], prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
        let velocity = model.forward(&latent, condition, None);
        let seconds = start.elapsed().as_secs_f64();
        let rms = (velocity.data().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / velocity.len() as f64).sqrt();
        println!("forward {seconds:.3} s (velocity rms {rms:.3})");
    }
    println!(
        "resident peak {:.2} GB, of which mapped weights {:.2} GB; activation pool peak {:.3} GB",
        memory("VmHWM"),
        memory("RssFile"),
        pool_stats().peak as f64 / 1e9
    );
    Ok(())
}
