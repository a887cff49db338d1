//! The rewards by CLIP, BLIP and mPLUG-Owl2 at their true sizes with random weights, on 512x512 pictures: seconds per image of a
//! score and of a gradient, a line of JSON for each reward. `benches/baselines/rewards.py` makes the weights, and compares with
//! PyTorch in turn:
//!
//!     python benches/baselines/rewards.py make DIR && cargo bench --bench rewards -- DIR [NAME DTYPE [RUNS]]

use std::path::Path;
use std::time::Instant;

use engine::data::Prompt;
use engine::device::philox::{Key, Purpose};
use engine::device::{Device, Tensor};
use engine::ops::noise;
use engine::rewards::aesthetic::{self, Aesthetic};
use engine::rewards::clipscore::{self, ClipScore};
use engine::rewards::deqa::Deqa;
use engine::rewards::hpsv2::{self, Hpsv2};
use engine::rewards::imagereward::ImageReward;
use engine::rewards::pickscore::PickScore;
use engine::rewards::{Dtype, Images, Reward};
use serde_json::json;

/// How many pictures are scored at a time, and how many a gradient is for.
const PICTURES: usize = 8;
const DEQA_PICTURES: usize = 4;
const DIFFERENTIATED: usize = 4;
const SIDE: usize = 512;
const PROMPT: &str = "a photo of two red apples and a green cup on a wooden table, picture";
const NAMES: [&str; 6] = ["clipscore", "aesthetic", "pickscore", "hpsv2", "imagereward", "deqa"];
const DTYPES: [(&str, Dtype); 2] = [("f32", Dtype::F32), ("bf16", Dtype::Bf16)];

fn reward(name: &str, folder: &Path, dtype: Dtype) -> anyhow::Result<Box<dyn Reward>> {
    let (l, h, cpu) = (folder.join("vit_l"), folder.join("vit_h/HPS_v2.1_compressed.pt"), &Device::Cpu);
    Ok(match name {
        "clipscore" => Box::new(ClipScore::load(&l, clipscore::Resize::TensorBilinear, dtype, cpu)?),
        "aesthetic" => Box::new(Aesthetic::load(&l, &folder.join("head.pth"), aesthetic::Resize::Pil, dtype, cpu)?),
        "pickscore" => Box::new(PickScore::load(&h, dtype, cpu)?),
        "hpsv2" => Box::new(Hpsv2::load(&h, hpsv2::Resize::Tensor, dtype, cpu)?),
        "imagereward" => Box::new(ImageReward::load(&folder.join("imagereward"), 35, dtype, cpu)?),
        "deqa" => Box::new(Deqa::load(&folder.join("deqa"), None, dtype, cpu)?),
        other => anyhow::bail!("no reward '{other}' here, expected one of {}", NAMES.join(", ")),
    })
}

/// Seconds per picture of each run but the first, which also embeds the prompts of CLIP.
fn seconds(runs: usize, pictures: usize, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    run()?;
    let mut one = || {
        let start = Instant::now();
        run()?;
        Ok(start.elapsed().as_secs_f64() / pictures as f64)
    };
    (0..runs).map(|_| one()).collect()
}

fn measure(name: &str, folder: &Path, dtype: (&str, Dtype), runs: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    let reward = reward(name, folder, dtype.1)?;
    let load = start.elapsed().as_secs_f64();
    let pictures = if name == "deqa" { DEQA_PICTURES } else { PICTURES };
    let key = Key::new(1, Purpose::ForwardNoise);
    let decoded: Tensor = noise::normal(&Device::Cpu, &[key], &[1, pictures * SIDE * SIDE * 3]);
    let decoded = decoded.reshape(&[pictures, SIDE, SIDE, 3]);
    let prompt = |i| Prompt { text: format!("{PROMPT} {i}"), tag: None, include: vec![], exclude: vec![], line: 1 };
    let prompts: Vec<Prompt> = (0..pictures).map(prompt).collect();
    let prompts: Vec<&Prompt> = prompts.iter().collect();
    let forward = seconds(runs, pictures, || reward.score(&Images::decoded(decoded.clone()), &prompts).map(drop))?;
    let (few, prompts) = (decoded.slice(0..DIFFERENTIATED), &prompts[..DIFFERENTIATED]);
    let gradient = reward.gradient();
    let gradient = gradient.map(|of| seconds(runs, DIFFERENTIATED, || of.gradient(&few, prompts).map(drop)));
    let mut line = json!({"reward": name, "dtype": dtype.0, "load": load, "forward": forward});
    if let Some(gradient) = gradient.transpose()? {
        line["gradient"] = json!(gradient);
    }
    println!("{line}");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(folder) = args.first() else {
        println!("rewards: no folder given, nothing measured; see the head of benches/rewards.rs");
        return Ok(());
    };
    let asked = |at: usize, name: &str| args.get(at).is_none_or(|asked| asked == name);
    let runs: usize = args.get(3).map_or(Ok(3), |n| n.parse())?;
    // As the commands do: the ops' own threads run the whole.
    engine::device::with_threads(0, || {
        for name in NAMES.into_iter().filter(|name| asked(1, name)) {
            for dtype in DTYPES.into_iter().filter(|(dtype, _)| asked(2, dtype)) {
                measure(name, Path::new(folder), dtype, runs)?;
            }
        }
        Ok(())
    })?
}
