"""Writes a transformer of Stable Diffusion 3.5 Medium's true shape with random weights (2.47 B parameters, bf16, 5 GB).

    python tools/full_size.py [--out /tmp/sd35-medium-random] [--shards 2]
    python tools/full_size.py --pipeline --out /tmp/sd35-pipeline    # the whole pipeline, 16 GB
    python tools/full_size.py --deqa --out /tmp/deqa-full            # DeQA-Score, 16 GB; [--dtype f16] as published

For memory and speed at full size where the real weights cannot be had. Names and shapes are taken from diffusers and
transformers on the meta device, and of DeQA-Score from tools/oracle/owl.py, so nothing but a few tables of random numbers is
ever held in memory. The pipeline's tokenizers and schedule are those of models/tiny-sd3; DeQA-Score's vocabulary is that of this
repository's own text.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "models" / "tiny-sd3"
TRANSFORMER = {
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
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
}
CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5 = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
# Random numbers are drawn once and repeated from a random place on; the length is prime, so rows do not repeat.
TABLE = 4_194_301


def bf16(x):
    """Rounds f32 to nearest-even bf16, as 16-bit words."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def f16(x):
    return x.astype(np.float16)


HALVES = {"bf16": ("BF16", bf16), "f16": ("F16", f16)}


def spread(name, shape):
    """Mean and deviation of values that keep activations near 1, as trained weights do."""
    if "norm_" in name and name.endswith("weight") and len(shape) == 1:
        return 1.0, 0.1
    if len(shape) == 1 or name.endswith("pos_embed"):
        return 0.0, 0.1
    return 0.0, 1 / math.sqrt(math.prod(shape[1:]))


class Filler:
    """Random values in half precision, of the mean and deviation that `spread` says by name and shape."""

    def __init__(self, seed, spread=spread, dtype="bf16"):
        self.rng = np.random.default_rng(seed)
        self.normal = self.rng.standard_normal(TABLE, dtype=np.float32)
        self.spread, (self.dtype, self.rounded), self.tables = spread, HALVES[dtype], {}

    def write(self, f, name, shape):
        mean, std = self.spread(name, shape)
        if (mean, std) not in self.tables:
            self.tables[mean, std] = self.rounded(mean + std * self.normal)
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
        header[name] = {"dtype": filler.dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for name, shape in shapes.items():
            filler.write(f, name, shape)


def write_component(out, model, config, stem, shards, filler):
    """`config.json` and the weights of a model on the meta device; tensors that share storage are written once."""
    tied = {"encoder.embed_tokens.weight"}
    shapes = {k: list(v.shape) for k, v in model.state_dict().items() if k not in tied}
    write_folder(out, shapes, {"_class_name": type(model).__name__, **config}, stem, shards, filler)


def write_folder(out, shapes, config, stem, shards, filler):
    """`config.json` and tensors of these shapes by name."""
    total = sum(math.prod(s) for s in shapes.values())
    print(f"{len(shapes)} tensors, {total / 1e9:.3f} B values, {2 * total / 1e9:.2f} GB in {out}")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{stem}*"):
        old.unlink()
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    parts, taken = [{} for _ in range(shards)], 0
    for name, shape in shapes.items():
        parts[min(taken * shards // total, shards - 1)][name] = shape
        taken += math.prod(shape)
    weight_map = {}
    for i, part in enumerate(parts):
        name = f"{stem}.safetensors" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}.safetensors"
        write_shard(out / name, part, filler)
        weight_map.update(dict.fromkeys(part, name))
    if shards > 1:
        index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
        (out / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_pipeline(out, shards, filler):
    """A whole pipeline folder."""
    with torch.device("meta"):
        components = {
            "transformer": (SD3Transformer2DModel(**TRANSFORMER), TRANSFORMER, DIFFUSERS, shards),
            "vae": (AutoencoderKL(**VAE), VAE, DIFFUSERS, 1),
            "text_encoder": (CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_L)), CLIP_L, TRANSFORMERS, 1),
            "text_encoder_2": (CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G)), CLIP_G, TRANSFORMERS, 1),
            "text_encoder_3": (T5EncoderModel(T5Config(**T5)), T5, TRANSFORMERS, shards),
        }
    for name, component in components.items():
        write_component(out / name, *component, filler)
    for name in ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.copytree(TINY / name, out / name, dirs_exist_ok=True)
    shutil.copy(TINY / "model_index.json", out)


def write_deqa(out, shards, dtype):
    """DeQA-Score's folder as published: weights, `config.json`, `preprocessor_config.json`, `tokenizer.model`."""
    sys.path.append(str(ROOT / "tools" / "oracle"))
    import owl

    listing = {name: (list(shape), (mean, half_width / math.sqrt(3))) for name, shape, half_width, mean in owl.tensors(owl.FULL)}
    filler = Filler(seed=0, spread=lambda name, _: listing[name][1], dtype=dtype)
    write_folder(out, {name: shape for name, (shape, _) in listing.items()}, owl.FULL.config(), "model", shards, filler)
    (out / "preprocessor_config.json").write_text(json.dumps(owl.preprocessor_config(owl.FULL.side), indent=2) + "\n")
    sources = sorted((ROOT / "src").rglob("*.rs")) + sorted((ROOT / "tools").rglob("*.py"))
    text = (owl.QUESTION + owl.LEVELS) * 3 + [line for path in sources for line in path.read_text().splitlines()]
    (out / "tokenizer.model").write_bytes(owl.vocabulary(text, owl.FULL.vocabulary))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("/tmp/sd35-medium-random"))
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--pipeline", action="store_true", help="also VAE, text encoders and tokenizers")
    parser.add_argument("--deqa", action="store_true", help="DeQA-Score instead")
    parser.add_argument("--dtype", choices=HALVES, default="bf16", help="of DeQA-Score's weights")
    args = parser.parse_args()
    if args.deqa:
        return write_deqa(args.out, args.shards, args.dtype)
    if args.pipeline:
        write_pipeline(args.out, args.shards, Filler(seed=0))
        return
    with torch.device("meta"):
        model = SD3Transformer2DModel(**TRANSFORMER)
    write_component(args.out, model, TRANSFORMER, DIFFUSERS, args.shards, Filler(seed=0))


if __name__ == "__main__":
    main()
