"""Writes a transformer of Stable Diffusion 3.5 Medium's true shape with random weights (2.47 B parameters, bf16, 5 GB).

    python tools/full_size.py [--out /tmp/sd35-medium-random] [--shards 2]

For memory and speed at full size where the real weights cannot be had. Names and shapes are taken from diffusers on
the meta device, so nothing but one table of random numbers is ever held in memory.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel

CONFIG = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
STEM = "diffusion_pytorch_model"
# Random numbers are drawn once and repeated from a random place on; the length is prime, so rows do not repeat.
TABLE = 4_194_301


def bf16(x):
    """Rounds f32 to nearest-even bf16, as 16-bit words."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Filler:
    """Values that keep activations near 1, as trained weights do."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.normal = self.rng.standard_normal(TABLE, dtype=np.float32)
        self.tables = {}

    def write(self, f, name, shape):
        if "norm_" in name and name.endswith("weight") and len(shape) == 1:
            mean, std = 1.0, 0.1
        elif len(shape) == 1 or name.endswith("pos_embed"):
            mean, std = 0.0, 0.1
        else:
            mean, std = 0.0, 1 / math.sqrt(math.prod(shape[1:]))
        if (mean, std) not in self.tables:
            self.tables[mean, std] = bf16(mean + std * self.normal)
        table = self.tables[mean, std]
        left = math.prod(shape)
        start = int(self.rng.integers(TABLE))
        while left:
            part = table[start : start + left]
            f.write(part)
            left -= part.size
            start = 0


def write_shard(path, shapes, filler):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for name, shape in shapes.items():
            filler.write(f, name, shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("/tmp/sd35-medium-random"))
    parser.add_argument("--shards", type=int, default=2)
    args = parser.parse_args()

    with torch.device("meta"):
        model = SD3Transformer2DModel(**CONFIG)
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    total = sum(math.prod(s) for s in shapes.values())
    print(f"{len(shapes)} tensors, {total / 1e9:.3f} B values, {2 * total / 1e9:.2f} GB in {args.out}")

    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob(f"{STEM}*"):
        old.unlink()
    (args.out / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel", **CONFIG}, indent=2) + "\n")
    shards, taken = [{} for _ in range(args.shards)], 0
    for name, shape in shapes.items():
        shards[min(taken * args.shards // total, args.shards - 1)][name] = shape
        taken += math.prod(shape)
    filler, weight_map = Filler(seed=0), {}
    for i, shard in enumerate(shards):
        single = args.shards == 1
        name = f"{STEM}.safetensors" if single else f"{STEM}-{i + 1:05}-of-{args.shards:05}.safetensors"
        write_shard(args.out / name, shard, filler)
        weight_map.update(dict.fromkeys(shard, name))
    if args.shards > 1:
        index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
        (args.out / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
