//! Forwards of Stable Diffusion 3.5 Medium's transformer at its true size: 256x256 and 512x512 pixels, 205 text tokens.
//!
//!     python tools/full_size.py --out DIR && cargo bench --bench full_size -- DIR|FILE.gguf [RUNS]

use std::path::Path;
use std::time::Instant;

use engine::device::philox::{Key, Purpose};
use engine::device::{Device, Tensor, arena_stats};
use engine::models::load_network;
use engine::models::lora::{Adapters, Rows};
use engine::models::network::Condition;
use engine::models::source::Component;
use engine::ops::noise;

/// Sides of latents (pixels by a factor of 8), and text tokens (CLIP's 77 and 128 of T5).
const SIDES: [usize; 2] = [32, 64];
const TEXT: usize = 205;

fn random(shape: &[usize], prompt: u32) -> Tensor {
    let key = Key { prompt, ..Key::new(0, Purpose::ForwardNoise) };
    noise::normal(&Device::Cpu, &[key], shape)
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
    let Some(place) = args.first() else {
        println!("full_size: no folder or file given, nothing measured; see the head of benches/full_size.rs");
        return Ok(());
    };
    let runs: usize = args.get(1).map_or(Ok(3), |n| n.parse())?;
    let start = Instant::now();
    let network = load_network(Component::transformer(Path::new(place))?, &Device::Cpu, None)?;
    println!("load {:.2} s (every weight is read once, to find what is not finite)", start.elapsed().as_secs_f64());

    let sizes = network.sizes();
    let (prompt_embeds, pooled) = (random(&[1, TEXT, sizes.text], 1), random(&[1, sizes.pooled], 2));
    let condition = Condition { timestep: &[500.0], prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
    for side in SIDES {
        let latent = random(&[1, sizes.channels, side, side], 0);
        for _ in 0..runs {
            let start = Instant::now();
            let velocity = network.forward(&latent, condition, &Adapters::none(&Rows::all(None, 1)));
            let seconds = start.elapsed().as_secs_f64();
            let squares = velocity.to_host().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            println!(
                "forward {} {seconds:.3} s (velocity rms {:.3})",
                8 * side,
                (squares / velocity.len() as f64).sqrt()
            );
        }
    }
    println!(
        "resident peak {:.2} GB, of which mapped weights {:.2} GB; tensors at most {:.3} GB",
        memory("VmHWM"),
        memory("RssFile"),
        arena_stats().peak as f64 / 1e9
    );
    Ok(())
}
