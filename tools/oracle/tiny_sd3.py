"""A run of the trained tiny model -> tests/fixtures/tiny_sd3.safetensors. Run again whenever the model changes.

    python tools/oracle/tiny_sd3.py [--models models/tiny-sd3]
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import save_file

from common import FIXTURES, ROOT, generator, quiet, randn

PROMPTS = ["two blue squares", "a red circle"]
STEPS, GUIDANCE, LENGTH = 10, 4.5, 32


@torch.no_grad()
def main():
    quiet()
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="models/tiny-sd3")
    folder = ROOT / parser.parse_args().models
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.transformer.config.sample_size
    noise = randn(generator("tiny_sd3"), len(PROMPTS), pipe.transformer.config.in_channels, side, side)
    size = side * pipe.vae_scale_factor
    e, n, p, q = pipe.encode_prompt(PROMPTS, None, None, negative_prompt=[""] * len(PROMPTS),
                                    max_sequence_length=LENGTH)
    call = dict(prompt=PROMPTS, negative_prompt=[""] * len(PROMPTS), num_inference_steps=STEPS,
                guidance_scale=GUIDANCE, max_sequence_length=LENGTH, height=size, width=size)
    latents = pipe(**call, latents=noise.clone(), output_type="latent").images
    images = pipe(**call, latents=noise.clone(), output_type="pil").images
    image = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).view(size, size, 3)
                         for i in images])
    io = dict(noise=noise, latents=latents, image=image, prompt_embeds=e, pooled_prompt_embeds=p,
              negative_prompt_embeds=n, negative_pooled_prompt_embeds=q)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    # The hash tells a stale fixture from a broken engine.
    meta = dict(prompts=json.dumps(PROMPTS), steps=str(STEPS), guidance=str(GUIDANCE),
                max_sequence_length=str(LENGTH), transformer_sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    save_file({k: v.contiguous().clone() for k, v in io.items()}, FIXTURES / "tiny_sd3.safetensors", metadata=meta)
    for k, v in io.items():
        print(k, list(v.shape), v.dtype, float(v.float().pow(2).mean().sqrt()))
    print(meta)
    for i, x in enumerate(images):
        x.resize((256, 256), 0).save(f"/tmp/tiny_sd3_{i}.png")


if __name__ == "__main__":
    main()
