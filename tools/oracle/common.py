"""Shared by the oracle scripts: where fixtures go, seeded random weights, safetensors writing.

Every parameter gets a random, non-trivial value. Zero-initialised gates, unit norms and empty biases would let a
port that forgets them pass.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hashlib
import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"

torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)


def generator(name):
    """A generator seeded by a name, so that adding a case never changes another one."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
    return torch.Generator().manual_seed(seed)


def randn(g, *shape, std=1.0, mean=0.0):
    return torch.randn(shape, generator=g) * std + mean


@torch.no_grad()
def randomize(model, name, gains=()):
    """Random weights that keep activations near 1.

    Matrices and kernels get std gain/sqrt(fan_in), embeddings 0.7, norm weights 1 +- 0.3, biases 0.2. `gains` is a
    list of (substring of the parameter name, gain), the first match wins.
    """
    g = generator("weights:" + name)
    norms = {
        f"{m}.weight" for m, mod in model.named_modules()
        if "norm" in type(mod).__name__.lower() and getattr(mod, "weight", None) is not None
    }
    embeddings = {f"{m}.weight" for m, mod in model.named_modules() if isinstance(mod, torch.nn.Embedding)}
    for key, p in model.named_parameters():
        gain = next((v for s, v in gains if s in key), 1.0)
        if key in norms:
            p.copy_(randn(g, *p.shape, std=0.3, mean=1.0))
        elif key in embeddings:
            p.copy_(randn(g, *p.shape, std=0.7 * gain))
        elif p.dim() <= 1:
            p.copy_(randn(g, *p.shape, std=0.2 * gain))
        else:
            p.copy_(randn(g, *p.shape, std=gain / math.sqrt(p[0].numel())))
    return model.eval()


def hashed(name, count):
    """`count` 32-bit numbers that follow from a name: MurmurHash3's finaliser."""
    x = np.arange(count, dtype=np.uint64) * 0x9E3779B1 + zlib.crc32(name.encode())
    mask = np.uint64(0xFFFFFFFF)
    x &= mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint64(shift)
        x = x * np.uint64(factor) & mask
    return (x ^ x >> np.uint64(16)).astype(np.uint32)


def uniform(name, count):
    """-1 to 1, exact in single precision."""
    return (hashed(name, count) >> 8).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def case_dir(*parts):
    """An empty fixture folder."""
    d = FIXTURES.joinpath(*parts)
    if d.exists():
        shutil.rmtree(d)
    d.mkdir(parents=True)
    return d


def save_io(path, tensors):
    """Writes named tensors, sorted, and prints what was written. `path` is a folder or a .safetensors file."""
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / "io.safetensors"
    out = {}
    for k in sorted(tensors):
        t = tensors[k].detach()
        if not t.is_floating_point():
            assert t.dtype in (torch.int64, torch.uint8), (k, t.dtype)
        else:
            assert t.dtype in (torch.float32, torch.float64), (k, t.dtype)
            assert torch.isfinite(t).all(), k
        out[k] = t.contiguous().clone()
    save_file(out, path)
    print(path.relative_to(ROOT))
    for k, t in out.items():
        stat = f"rms {t.double().pow(2).mean().sqrt():.3f}" if t.is_floating_point() else ""
        print(f"    {k:60s} {str(t.dtype)[6:]:8s} {str(list(t.shape)):20s} {stat}")


def quiet():
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


class Listed:
    """Weights whose numbers follow from their names (`uniform`, times a scale, plus a mean), and the list of what they are."""

    def __init__(self):
        self.listing = []

    def tensor(self, name, shape, scale, mean):
        """{name: tensor}."""
        scale = float(np.float32(scale))
        self.listing.append({"name": name, "shape": shape, "scale": scale, "mean": mean})
        values = uniform(name, math.prod(shape)) * np.float32(scale) + np.float32(mean)
        return {name: torch.from_numpy(values).reshape(shape)}

    def write(self, path):
        """The list as JSON, a tensor a line."""
        path.write_text("[\n" + ",\n".join(json.dumps(t) for t in self.listing) + "\n]\n")
