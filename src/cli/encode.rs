use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use engine::io::{output_file, safetensors};
use engine::models::text::TextEncoders;

use super::{DeviceArg, PartArgs, encode_prompts, sequence_length};

/// Encode prompts with the model's text encoders and save the embeddings.
///
/// Writes `prompt_embeds` [prompts, tokens, width] and `pooled_prompt_embeds` [prompts, width], as
/// StableDiffusion3Pipeline.encode_prompt of diffusers gives them, in the type of the encoders' weights.
#[derive(clap::Args)]
pub struct Args {
    /// Model: a folder in the layout of diffusers, or a checkpoint of one file.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    #[command(flatten)]
    parts: PartArgs,
    /// Prompt; may be given several times.
    #[arg(long, value_name = "TEXT", required = true, num_args = 1..)]
    prompt: Vec<String>,
    /// T5 tokens per prompt, 1 to 512.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = sequence_length)]
    max_sequence_length: usize,
    /// File to write.
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

pub fn run(args: Args) -> Result<()> {
    args.device.run(|device| {
        let text = TextEncoders::load(&args.parts.open(&args.model)?, device)?;
        output_file(&args.out)?;
        let embeds = encode_prompts(&text, &args.prompt, args.max_sequence_length)?;
        let tensors = [
            ("prompt_embeds".to_string(), embeds.prompt_embeds),
            ("pooled_prompt_embeds".to_string(), embeds.pooled_prompt_embeds),
        ];
        safetensors::save(&args.out, tensors, &BTreeMap::new())
    })
}
