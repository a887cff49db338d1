"""Train the tiny SD3.5-format text-to-image model on captioned shapes and save it as a pipeline folder.

    python tools/tiny/train_sd3.py --out models/tiny-sd3

As with the real one, the parts learn one after the other: the VAE to reproduce the images, the three text encoders to
read captions, and then, with both of them fixed, the MMDiT by flow matching on the VAE's latents. The prompt is encoded
exactly as `StableDiffusion3Pipeline` does it. The saved folder loads with `StableDiffusion3Pipeline.from_pretrained`.
`--vae models/tiny-sd3/vae` takes a VAE that is there already.
"""

import argparse
import copy
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

# Threads that spin at barriers starve each other as soon as anything else runs on the machine. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import shapes
import words


def to_tensor(images):
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def warmup_cosine(optimizer, steps, warmup):
    """Linear warmup, then cosine to nothing."""

    def factor(i):
        return min((i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * i / steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


# T5 tokens of the longest caption without a relation, and its end.
T5_SHORT = 8


def warmup_flat_linear(optimizer, steps, warmup):
    """Linear warmup, flat, then over the last four tenths in a line to nothing."""

    def factor(i):
        return min((i + 1) / warmup, 1.0, (1 - i / steps) / 0.4)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def parameter_count(module):
    return sum(p.numel() for p in module.parameters())


def new_vae():
    """A narrow AutoencoderKL with SD3.5's latent layout: 16 channels, factor 8, no quant convolutions."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=shapes.SIZE,
        force_upcast=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_vae(images, args):
    """Train the VAE (further, with `--vae-init`) and set its scaling and shift factors so that latents have mean 0 and deviation 1."""
    vae = AutoencoderKL.from_pretrained(args.vae_init) if args.vae_init else new_vae()
    vae = vae.train().to(memory_format=torch.channels_last)
    print(f"vae: {parameter_count(vae) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.vae_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = warmup_cosine(optimizer, args.vae_steps, 50)
    start, recent = time.time(), []
    for step in range(args.vae_steps):
        x = images[torch.randint(len(images), (args.vae_batch,))].contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample()).sample
        error = F.mse_loss(out, x)
        # The absolute error keeps edges crisp; squared error alone tolerates a soft rim.
        loss = error + 0.1 * F.l1_loss(out, x) + args.kl * posterior.kl().mean() / (16 * 64)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(error.item())
        if (step + 1) % 100 == 0 or step + 1 == args.vae_steps:
            print(f"vae step {step + 1} mse {np.mean(recent[-100:]):.2e} {time.time() - start:.0f} s", flush=True)
    vae = vae.to(memory_format=torch.contiguous_format).eval()
    mean, std = encode(vae, images[:2000])
    latents = mean + std * torch.randn_like(std)
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
    print(f"vae shift {vae.config.shift_factor:.4f} scale {vae.config.scaling_factor:.4f}", flush=True)
    return vae


@torch.no_grad()
def encode(vae, images):
    """Means and deviations of the images' latent distributions."""
    parts = [vae.encode(x).latent_dist for x in images.split(64)]
    return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])




def new_clip_text(vocabulary, pad_id, activation):
    """A small CLIP text encoder whose token embeddings are large enough to be told apart from the start."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=64,
        max_position_embeddings=words.CLIP_LENGTH,
        hidden_act=activation,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=pad_id,
    )
    model = CLIPTextModelWithProjection(config)
    embeddings = next(m for m in model.modules() if hasattr(m, "token_embedding"))
    with torch.no_grad():
        embeddings.token_embedding.weight.normal_(std=0.3)
        embeddings.position_embedding.weight.normal_(std=0.1)
    return model


def new_t5(vocabulary):
    """A small T5 encoder of the v1.1 kind (gated GELU)."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def new_transformer():
    """SD3.5-medium's MMDiT in miniature; blocks start as identities (adaLN-zero)."""
    model = SD3Transformer2DModel(
        sample_size=shapes.SIZE // 8,
        patch_size=2,
        in_channels=16,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        out_channels=16,
        pos_embed_max_size=16,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    zeroed = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for layer in zeroed:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


class PromptEncoder(torch.nn.Module):
    """The three text encoders, joined as `StableDiffusion3Pipeline.encode_prompt` joins them."""

    def __init__(self, tokenizers):
        super().__init__()
        self.tokenizers = tokenizers
        clip, clip_2, t5 = tokenizers
        self.clip = new_clip_text(len(clip), clip.pad_token_id, "quick_gelu")
        self.clip_2 = new_clip_text(len(clip_2), clip_2.pad_token_id, "gelu")
        self.t5 = new_t5(len(t5))

    def tokenize(self, prompts):
        """Ids for the three encoders, padded to the greatest length; T5's are cut to size in `forward`."""
        lengths = (words.CLIP_LENGTH, words.CLIP_LENGTH, words.T5_LENGTH)
        return [
            t(prompts, padding="max_length", max_length=n, truncation=True, return_tensors="pt").input_ids
            for t, n in zip(self.tokenizers, lengths)
        ]

    def forward(self, ids, t5_length):
        """Sequence [b, 10 + t5_length, 128] and pooled [b, 128] embeddings."""
        first = self.clip(ids[0], output_hidden_states=True)
        second = self.clip_2(ids[1], output_hidden_states=True)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        t5 = self.t5(ids[2][:, :t5_length]).last_hidden_state
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return torch.cat([clip, t5], dim=-2), torch.cat([first.text_embeds, second.text_embeds], dim=-1)


def facts(caption):
    """What a caption says, as one class for each of `FACTS`: how many, and colour and shape of the first and second."""
    names = caption.split()
    colors = [list(shapes.COLORS).index(w) for w in names if w in shapes.COLORS]
    kinds = [shapes.CLASSES.index(w.removesuffix("s")) for w in names if w.removesuffix("s") in shapes.CLASSES]
    number = {name: n for n, name in shapes.NUMBERS.items()}.get(names[0] if names else "", 0 if len(kinds) == 1 else 4)
    relation = next((i for i, r in enumerate(shapes.RELATIONS) if f" {r} " in caption), 4)
    second = (colors[1:] + [4])[0], (kinds[1:] + [3])[0]
    return [number if names else 5, (colors + [4])[0], (kinds + [3])[0], *second, relation]


# Classes of each fact.
FACTS = (6, 5, 4, 5, 4, 5)


def train_text(encoder, captions, args):
    """Teach each text encoder to say what a caption says, by a linear layer on its pooled output (of T5: the mean)."""
    answers = torch.tensor([facts(c) for c in captions])
    ids = encoder.tokenize(captions)
    widths = (64, 64, 128)
    heads = torch.nn.ModuleList(torch.nn.Linear(width, sum(FACTS)) for width in widths)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.01)
    start = time.time()
    for step in range(args.text_steps):
        pick = torch.randint(len(captions), (64,))
        sequence, pooled = encoder([i[pick] for i in ids], T5_SHORT)
        t5 = sequence[:, words.CLIP_LENGTH :].mean(1)
        features = (*pooled.split(64, dim=1), t5)
        said = [part for f, head in zip(features, heads) for part in head(f).split(FACTS, dim=1)]
        loss = sum(F.cross_entropy(s, answers[pick, i % len(FACTS)]) for i, s in enumerate(said)) / len(said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"text step {step + 1} loss {loss.item():.2e} {time.time() - start:.0f} s", flush=True)
    encoder.eval().requires_grad_(False)


@torch.no_grad()
def embed(encoder, captions, length):
    """What the fixed encoders make of all captions: sequence [n, 10 + length, 128] and pooled [n, 128]."""
    ids = encoder.tokenize(captions)
    parts = [encoder([i[k : k + 64] for i in ids], length) for k in range(0, len(captions), 64)]
    return tuple(torch.cat(p) for p in zip(*parts))


def draw_sigmas(count, shift):
    """Noise levels: logit-normal, moved towards noise by `shift` as the sampler moves its steps."""
    u = torch.sigmoid(torch.randn(count))
    return shift * u / (1 + (shift - 1) * u)


def train_flow(mean, std, captions, encoder, transformer, args, save):
    """Flow matching: predict noise minus data at sigma * noise + (1 - sigma) * data. Saves the averaged weights."""
    average = copy.deepcopy(transformer).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = warmup_flat_linear(optimizer, args.steps, 100)
    texts = sorted({"", *captions})
    number = {text: i for i, text in enumerate(texts)}
    caption, empty = torch.tensor([number[c] for c in captions]), torch.tensor(number[""])
    ids = encoder.tokenize(texts)
    sequences, pools = embed(encoder, texts, T5_SHORT)
    compiled = torch.compile(transformer)
    choose = random.Random(args.seed)
    start, recent = time.time(), []
    for step in range(args.steps):
        # Some prompts are padded to greater lengths, up to diffusers' default. Those batches are small, to cost the same.
        long = choose.random() < 0.05
        batch = args.batch // 8 if long else args.batch
        pick = torch.randint(len(mean), (batch,))
        data = mean[pick] + std[pick] * torch.randn_like(std[pick])
        text = torch.where(torch.rand(batch) < 0.1, empty, caption[pick])
        sigma = draw_sigmas(batch, args.train_shift)
        noise = torch.randn_like(data)
        s = sigma.view(-1, 1, 1, 1)
        if long:
            with torch.no_grad():
                prompt, pooled = encoder([i[text] for i in ids], choose.randint(T5_SHORT + 1, words.T5_LENGTH))
        else:
            prompt, pooled = sequences[text], pools[text]
        model = transformer if long else compiled
        out = model(s * noise + (1 - s) * data, prompt, pooled, sigma * 1000).sample
        loss = F.mse_loss(out, noise - data)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        update_average(average, transformer, min(args.ema, (1 + step) / (10 + step)))
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            print(f"flow step {step + 1} loss {np.mean(recent[-100:]):.4f} {time.time() - start:.0f} s", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save(average)


@torch.no_grad()
def update_average(average, model, decay):
    """Exponential moving average of all parameters."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def save_pipeline(out, vae, encoder, transformer, captions):
    """Write the pipeline folder, in place of what was there only once it is complete."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    clip, clip_2, t5 = encoder.tokenizers
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae,
        text_encoder=encoder.clip,
        tokenizer=clip,
        text_encoder_2=encoder.clip_2,
        tokenizer_2=clip_2,
        text_encoder_3=encoder.t5,
        tokenizer_3=t5,
    )
    pipeline.save_pretrained(part)
    # transformers 5 leaves only tokenizer.json; SD3.5's CLIP folders hold vocab.json and merges.txt instead.
    for name, pad in (("tokenizer", words.END), ("tokenizer_2", "!")):
        shutil.rmtree(part / name)
        words.save_clip_tokenizer(part / name, captions, pad)
    for path in part.rglob("config.json"):
        forget_origin(path)
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def forget_origin(path):
    """Drop the absolute path that diffusers notes in a config, so that two runs write the same bytes."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    words.write_json(path, config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/tiny-sd3"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=24000)
    parser.add_argument("--vae-steps", type=int, default=2400)
    parser.add_argument("--vae-batch", type=int, default=8)
    parser.add_argument("--vae-lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=3e-5, help="weight of the KL term per latent element")
    parser.add_argument("--vae", type=Path, help="folder of a VAE that is taken as it is")
    parser.add_argument("--vae-init", type=Path, help="folder of a VAE to train further")
    parser.add_argument("--text-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=2000, help="flow-matching steps")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--train-shift", type=float, default=2.0)
    parser.add_argument("--save-every", type=int, default=600, help="also save the model so far every so many steps")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    images, scenes = shapes.dataset(args.images, args.seed)
    images = to_tensor(images)
    captions = shapes.all_captions()
    vae = AutoencoderKL.from_pretrained(args.vae).eval() if args.vae else train_vae(images, args)
    start = time.time()
    mean, std = encode(vae, images)
    mean = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    std = std * vae.config.scaling_factor
    print(f"latents of {len(images)} images {time.time() - start:.0f} s", flush=True)

    # Made beside the output folder and thrown away: the tokenizers are read from files, as users will read them.
    scratch = args.out.with_name(args.out.name + ".tokenizers")
    tokenizers = [
        words.save_clip_tokenizer(scratch / "1", captions, words.END),
        words.save_clip_tokenizer(scratch / "2", captions, "!"),
        words.save_t5_tokenizer(scratch / "3", captions),
    ]
    shutil.rmtree(scratch)
    encoder, transformer = PromptEncoder(tokenizers), new_transformer()
    for name, module in (("text encoders", encoder), ("transformer", transformer)):
        print(f"{name}: {parameter_count(module) / 1e6:.2f} M parameters", flush=True)
    train_text(encoder, [*captions, ""], args)

    def save(transformer):
        save_pipeline(args.out, vae, encoder, transformer, captions)

    train_flow(mean, std, [s.caption() for s in scenes], encoder, transformer, args, save)


if __name__ == "__main__":
    main()
