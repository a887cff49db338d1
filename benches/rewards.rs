//! The rewards by CLIP at their true sizes with random weights, on 512x512 pictures: images per second, beside what
//! benches/baselines/rewards.py says of PyTorch on the same files.
//!
//!     python benches/baselines/rewards.py DIR make && cargo bench --bench rewards -- DIR [RUNS]

use std::path::Path;
use std::time::Instant;

use engine::data::Prompt;
use engine::device::philox::{Key, Purpose};
use engine::device::{Device, Tensor};
use engine::ops::noise;
use engine::rewards::aesthetic::{self, Aesthetic};
use engine::rewards::clipscore::{self, ClipScore};
use engine::rewards::hpsv2::{self, Hpsv2};
use engine::rewards::pickscore::PickScore;
use engine::rewards::{Dtype, Images, Reward};

const PICTURES: usize = 8;
const SIDE: usize = 512;

fn reward(name: &str, folder: &Path, dtype: Dtype) -> anyhow::Result<Box<dyn Reward>> {
    let (l, h, cpu) = (folder.join("vit_l"), folder.join("vit_h/HPS_v2.1_compressed.pt"), &Device::Cpu);
    Ok(match name {
        "clipscore" => Box::new(ClipScore::load(&l, clipscore::Resize::TensorBilinear, dtype, cpu)?),
        "aesthetic" => Box::new(Aesthetic::load(&l, &folder.join("head.pth"), aesthetic::Resize::Pil, dtype, cpu)?),
        "pickscore" => Box::new(PickScore::load(&h, dtype, cpu)?),
        _ => Box::new(Hpsv2::load(&h, hpsv2::Resize::Tensor, dtype, cpu)?),
    })
}

fn measure(name: &str, folder: &Path, dtype: Dtype, runs: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    let reward = reward(name, folder, dtype)?;
    let load = start.elapsed().as_secs_f64();
    let key = Key::new(1, Purpose::ForwardNoise);
    let decoded: Tensor = noise::normal(&Device::Cpu, &[key], &[1, PICTURES * SIDE * SIDE * 3]);
    let decoded = decoded.reshape(&[PICTURES, SIDE, SIDE, 3]);
    let prompt = |i| Prompt { text: format!("picture {i}"), tag: None, include: vec![], exclude: vec![], line: 1 };
    let prompts: Vec<Prompt> = (0..PICTURES).map(prompt).collect();
    let prompts: Vec<&Prompt> = prompts.iter().collect();
    let mut seconds = Vec::new();
    for _ in 0..=runs {
        let start = Instant::now();
        reward.score(&Images::decoded(decoded.clone()), &prompts)?;
        seconds.push(start.elapsed().as_secs_f64() / PICTURES as f64);
    }
    // The first also embeds the prompts.
    seconds[1..].sort_by(f64::total_cmp);
    let median = seconds[1..][runs / 2];
    let start = Instant::now();
    reward.gradient().expect("all of them have one").gradient(&decoded.slice(0..1), &prompts[..1])?;
    println!(
        "{name} {dtype:?}: load {load:.2} s, {median:.3} s per image ({:.2} images/s), gradient {:.2} s per image",
        1.0 / median,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(folder) = args.first() else {
        println!("rewards: no folder given, nothing measured; see the head of benches/rewards.rs");
        return Ok(());
    };
    let runs: usize = args.get(1).map_or(Ok(3), |n| n.parse())?;
    // As the commands do: the ops' own threads run the whole.
    engine::device::with_threads(0, || {
        for name in ["clipscore", "aesthetic", "pickscore", "hpsv2"] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                measure(name, Path::new(folder), dtype, runs)?;
            }
        }
        Ok(())
    })?
}
