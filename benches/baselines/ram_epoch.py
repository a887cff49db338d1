"""One RAM epoch of a tiny config with PyTorch, diffusers and PEFT, phase by phase: what `engine train` does, written as a
PyTorch user would. Prints one JSON line per epoch with the seconds of each phase.

    python benches/baselines/ram_epoch.py eager|compiled configs/tiny/ram_jpeg.toml EPOCHS
"""

import io
import json
import os
import sys
import time
import tomllib
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from PIL import Image

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def jpeg_reward(images):
    """-kB/500 of each image as a JPEG of quality 95."""
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=95)
        sizes.append(buffer.tell())
    return torch.tensor([-s / 1000 / 500 for s in sizes], dtype=torch.float64)


@torch.no_grad()
def rollout(pipe, config, prompts, pooled):
    """Deterministic Euler samples of the lagged policy, without guidance."""
    pipe.transformer.set_adapter("old")
    pipe.scheduler.set_timesteps(config["rollout"]["num_inference_steps"])
    sigmas, latents = pipe.scheduler.sigmas, []
    batch = config["rollout"]["batch_size"]
    for first in range(0, len(prompts), batch):
        embeds, pool = prompts[first : first + batch], pooled[first : first + batch]
        x = torch.randn(len(embeds), 16, 8, 8)
        for sigma, after in zip(sigmas[:-1], sigmas[1:]):
            t = torch.full((len(x),), float(sigma) * 1000)
            x = x + (after - sigma) * pipe.transformer(x, embeds, pool, t).sample
        latents.append(x)
    return torch.cat(latents)


@torch.no_grad()
def decode(pipe, latents):
    """8-bit images [n, 64, 64, 3]."""
    images = []
    for x in latents.split(32):
        out = pipe.vae.decode(x / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
        images.append(((out / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1))
    return torch.cat(images).numpy()


def update(pipe, optimizer, config, x0, advantage, prompts, pooled):
    """All training points of the epoch, then one optimiser step."""
    model, k = pipe.transformer, config["ram"]["num_noisings"]
    multiplier, batch = config["ram"]["reward_multiplier"], config["train"]["batch_size"]
    image = torch.arange(len(x0)).repeat_interleave(k)
    for part in image.split(batch):
        clean, weight = x0[part], multiplier * advantage[part].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        t = torch.rand(len(part)) ** (1 / (1 + config["ram"].get("timestep_power", 1.0)))
        s = t.view(-1, 1, 1, 1)
        inputs = ((1 - s) * clean + s * noise, prompts[part], pooled[part], 1000 * t)
        with torch.no_grad():
            model.disable_adapters()
            reference = model(*inputs).sample
            model.enable_adapters()
            model.set_adapter("old")
            old = model(*inputs).sample
        model.set_adapter("theta")
        out = model(*inputs).sample
        target = reference + weight * (noise - clean - old)
        ((out - target) ** 2).mean(dim=(1, 2, 3)).sum().div(len(image)).backward()
    optimizer.step()
    optimizer.zero_grad()
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in state.items():
            if ".old." in name:
                p.copy_(state[name.replace(".old.", ".theta.")])


def main():
    torch.set_num_threads(os.cpu_count())
    config = tomllib.loads(Path(sys.argv[2]).read_text())
    pipe = StableDiffusion3Pipeline.from_pretrained(config["model"])
    pipe.transformer.requires_grad_(False)
    keys = {"rank": 32, "alpha": 64, **config.get("lora", {})}
    lora = LoraConfig(
        r=keys["rank"],
        lora_alpha=keys["alpha"],
        init_lora_weights="gaussian",
        target_modules=[f"attn.{t}" for t in TARGETS],
    )
    for name in ("theta", "old"):
        pipe.transformer.add_adapter(lora, adapter_name=name)
    trained = [p for n, p in pipe.transformer.named_parameters() if ".theta." in n]
    optimizer = torch.optim.AdamW(trained, lr=config["optimizer"]["lr"], betas=(0.9, 0.99))
    if sys.argv[1] == "compiled":
        # In place: the adapters stay where the training loop looks for them.
        pipe.transformer.compile()
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    groups, repeats = config["rollout"]["num_prompts_per_epoch"], config["rollout"]["num_images_per_prompt"]
    lines = Path(config["prompts"]["train"]).read_text().splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    for epoch in range(int(sys.argv[3])):
        with torch.no_grad():
            length = config["prompts"]["max_sequence_length"]
            chosen = texts[epoch * groups : (epoch + 1) * groups]
            embeds, _, pool, _ = pipe.encode_prompt(
                chosen, chosen, chosen, do_classifier_free_guidance=False, max_sequence_length=length
            )
        prompts, pooled = embeds.repeat_interleave(repeats, 0), pool.repeat_interleave(repeats, 0)
        seconds, clock = {}, time.perf_counter()

        def lap(name):
            nonlocal clock
            seconds[name], clock = time.perf_counter() - clock, time.perf_counter()

        x0 = rollout(pipe, config, prompts, pooled)
        lap("rollout")
        images = decode(pipe, x0)
        lap("decode")
        rewards = jpeg_reward(images).view(groups, repeats)
        advantage = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(correction=0) + 1e-4)).flatten().float()
        lap("reward")
        update(pipe, optimizer, config, x0, advantage, prompts, pooled)
        lap("update")
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
