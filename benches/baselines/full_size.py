"""The forwards of benches/full_size.rs by diffusers, eager and compiled, on the same folder.

    python benches/baselines/full_size.py DIR [RUNS] [bfloat16|float32]

Processors that do not multiply bf16 are faster with weights widened to float32, in twice the memory.
"""

import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import SD3Transformer2DModel

SIDES, TEXT = (32, 64), 205


def memory(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 / 1e9 for line in f if line.startswith(key + ":"))


@torch.inference_mode()
def main():
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    dtype = getattr(torch, sys.argv[3] if len(sys.argv) > 3 else "bfloat16")
    start = time.perf_counter()
    model = SD3Transformer2DModel.from_pretrained(sys.argv[1], torch_dtype=dtype).eval()
    print(f"load {time.perf_counter() - start:.2f} s, {torch.get_num_threads()} threads")
    g = torch.Generator().manual_seed(0)
    inputs = {
        "encoder_hidden_states": torch.randn(1, TEXT, model.config.joint_attention_dim, generator=g).to(dtype),
        "pooled_projections": torch.randn(1, model.config.pooled_projection_dim, generator=g).to(dtype),
        "timestep": torch.tensor([500.0]),
    }
    for name, run in (("eager", model), ("compiled", torch.compile(model))):
        for side in SIDES:
            latent = torch.randn(1, model.config.in_channels, side, side, generator=g).to(dtype)
            # The first one compiles.
            for _ in range(runs + 1):
                start = time.perf_counter()
                velocity = run(hidden_states=latent, **inputs, return_dict=False)[0]
                seconds = time.perf_counter() - start
                rms = velocity.float().pow(2).mean().sqrt()
                print(f"{name} forward {8 * side} {seconds:.3f} s (velocity rms {rms:.3f})", flush=True)
    print(f"resident peak {memory('VmHWM'):.2f} GB")


if __name__ == "__main__":
    main()
