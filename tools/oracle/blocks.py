"""Blocks of every quantised format with what the gguf package (block formats) and PyTorch (fp8) make of them.

Writes tests/fixtures/blocks.safetensors: `<format>.bytes` and `<format>.values`.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from safetensors.torch import save_file

BLOCKS = 5
FIXTURE = Path(__file__).parents[2] / "tests/fixtures/blocks.safetensors"
KINDS = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]
KINDS += [Kind.IQ4_NL, Kind.IQ4_XS]
# Where the half-precision numbers of a block are.
HALVES = {Kind.Q4_1: [0, 2], Kind.Q5_1: [0, 2], Kind.Q2_K: [80, 82], Kind.Q3_K: [108], Kind.Q4_K: [0, 2]}
HALVES |= {Kind.Q5_K: [0, 2], Kind.Q6_K: [208]}

generator = np.random.default_rng(7)
tensors = {}
for kind in KINDS:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    data = generator.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for at in HALVES.get(kind, [0]):
        scale = generator.normal(0, 0.1, BLOCKS).astype(np.float16)
        data[:, at : at + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
    values = quants.dequantize(data.reshape(-1), kind).astype(np.float32)
    tensors[f"{kind.name}.bytes"] = torch.from_numpy(data.reshape(-1).copy())
    tensors[f"{kind.name}.values"] = torch.from_numpy(values.reshape(-1).copy())
codes = torch.arange(256, dtype=torch.uint8)
for name, dtype in [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)]:
    tensors[f"{name}.bytes"] = codes
    tensors[f"{name}.values"] = codes.view(dtype).float()
save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, FIXTURE)
print(FIXTURE, FIXTURE.stat().st_size)
