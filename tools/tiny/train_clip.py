"""Train the tiny CLIP that judges the tiny text-to-image model, and save it in Hugging Face's layout.

    python tools/tiny/train_clip.py --out models/tiny-clip

Contrastive on freshly drawn scenes. Half of every batch are near misses of the other half (one more shape, colours
swapped, relation turned round), because random captions alone can be told apart without counting or looking where
things are. Images are blurred and noised a little, as a generator's are.
"""

import argparse
import math
import os
import random
import shutil
import time
from pathlib import Path

# As in train_sd3.py: do not spin at barriers on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

import shapes
import words

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def new_clip(vocabulary):
    """Both towers, with the ids that `words.save_clip_tokenizer` gives the special tokens."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": words.CLIP_LENGTH,
        "hidden_act": "quick_gelu",
        "projection_dim": 64,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        "image_size": shapes.SIZE,
        "patch_size": 8,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "projection_dim": 64,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    with torch.no_grad():
        # The default deviation of 0.02 suits a long run; in this short one the words would start out alike.
        for name, parameter in model.named_parameters():
            if "token_embedding" in name or "position_embedding" in name:
                parameter.normal_(std=0.2)
    return model


def near_miss(scene, rng):
    """A scene that differs in one point from the given one."""
    objects = scene.objects
    if scene.tag == "position":
        return shapes.Scene(scene.tag, objects, OPPOSITE[scene.relation])
    if scene.tag == "counting":
        n = rng.choice([n for n in shapes.NUMBERS if n != len(objects)])
        return shapes.Scene(scene.tag, objects[:1] * n)
    if scene.tag == "color_attr" and objects[0][1] != objects[1][1]:
        (a, x), (b, y) = objects
        return shapes.Scene(scene.tag, ((b, x), (a, y)))
    color = rng.choice([c for c in shapes.COLORS if c != objects[0][0]])
    return shapes.Scene(scene.tag, ((color, objects[0][1]), *objects[1:]))


def batch_of_scenes(size, rng):
    """Scenes with distinct captions, in pairs of near misses."""
    chosen = {}
    while len(chosen) < size:
        scene = shapes.random_scene(rng)
        for s in (scene, near_miss(scene, rng)):
            chosen.setdefault(s.caption(), s)
    return list(chosen.values())[:size]


def content(scene):
    """The objects in a fixed order, and the relation as seen from the first of them."""
    ordered = tuple(sorted(scene.objects))
    turned = ordered != scene.objects and scene.relation
    return ordered, OPPOSITE[scene.relation] if turned else scene.relation


def may_be_true(scenes):
    """[i, j]: caption j may describe image i too ("one red circle" for "a red circle"), so it is no negative."""
    contents = [content(s) for s in scenes]
    same = [
        [i != j and a[0] == b[0] and (a[1] == b[1] or None in (a[1], b[1])) for j, b in enumerate(contents)]
        for i, a in enumerate(contents)
    ]
    return torch.tensor(same)


def pixels(images):
    """uint8 [n, h, w, 3] to [n, 3, h, w] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def normalise(x):
    """What the image processor does to an image that already has the right size."""
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def soften(x, rng):
    """Random mild blur (one strength for the batch) and noise (one strength for each image)."""
    sigma = rng.uniform(0.05, 1.0)
    taps = torch.exp(-torch.arange(-2.0, 3.0) ** 2 / (2 * sigma**2))
    taps = (taps / taps.sum()).view(1, 1, 1, 5).repeat(3, 1, 1, 1)
    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), taps, groups=3)
    x = F.conv2d(x, taps.transpose(2, 3), groups=3)
    return (x + torch.randn_like(x) * 0.05 * torch.rand(len(x), 1, 1, 1)).clamp(0, 1)


def tokenize(tokenizer, scenes):
    captions = [s.caption() for s in scenes]
    return tokenizer(captions, padding="max_length", max_length=words.CLIP_LENGTH, return_tensors="pt")


def drawn(scenes, rng):
    return pixels(np.stack([shapes.draw(s, rng) for s in scenes]))


def train(model, tokenizer, args):
    """Symmetric cross-entropy over the batch, as CLIP, with captions that may be true of an image left out."""
    rng = random.Random(args.seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))

    def factor(i):
        return min((i + 1) / 100, 0.5 * (1 + math.cos(math.pi * i / args.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    start, recent = time.time(), []
    for step in range(args.steps):
        scenes = batch_of_scenes(args.batch, rng)
        images = normalise(soften(drawn(scenes, rng), rng))
        text = tokenize(tokenizer, scenes)
        logits = model(pixel_values=images, **text).logits_per_image
        logits = logits.masked_fill(may_be_true(scenes), -1e4)
        target = torch.arange(len(scenes))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            print(f"step {step + 1} loss {np.mean(recent[-100:]):.4f} {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def evaluate(model, tokenizer, seed, batches=16):
    """Print retrieval accuracy in batches of 64 distinct captions, random ones and ones half of near misses."""
    rng = random.Random(seed + 1)
    model.eval()
    for name in ("random", "near misses"):
        hits = []
        for _ in range(batches):
            scenes = batch_of_scenes(64, rng) if name == "near misses" else random_batch(64, rng)
            images = normalise(drawn(scenes, rng))
            logits = model(pixel_values=images, **tokenize(tokenizer, scenes)).logits_per_image
            logits = logits.masked_fill(may_be_true(scenes), -1e4)
            target = torch.arange(64)
            hits.append([(logits.argmax(d) == target).float().mean().item() for d in (1, 0)])
        to_text, to_image = np.mean(hits, axis=0)
        print(f"retrieval of 64, {name}: image to text {to_text:.3f}, text to image {to_image:.3f}")


def random_batch(size, rng):
    """Random scenes with distinct captions."""
    chosen = {}
    while len(chosen) < size:
        scene = shapes.random_scene(rng)
        chosen.setdefault(scene.caption(), scene)
    return list(chosen.values())


def save(model, out, captions):
    """Weights, config, tokenizer and image processor, as OpenAI's CLIP is published."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    words.save_clip_tokenizer(part, captions, words.END)
    processor = {
        "crop_size": {"height": shapes.SIZE, "width": shapes.SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": shapes.SIZE},
    }
    words.write_json(part / "preprocessor_config.json", processor)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/tiny-clip"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    captions = shapes.all_captions()
    scratch = args.out.with_name(args.out.name + ".tokenizer")
    tokenizer = words.save_clip_tokenizer(scratch, captions, words.END)
    shutil.rmtree(scratch)
    model = new_clip(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    train(model, tokenizer, args)
    save(model, args.out, captions)
    evaluate(CLIPModel.from_pretrained(args.out), tokenizer, args.seed)


if __name__ == "__main__":
    main()
