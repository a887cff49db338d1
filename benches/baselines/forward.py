"""The forward of benches/mmdit.rs by diffusers: 32 samples through the tiny model's transformer. Prints one JSON line per
setting with its seconds.

    python benches/baselines/forward.py MODEL REPETITIONS
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

BATCH, TEXT_TOKENS = 32, 32


@torch.inference_mode()
def main():
    folder, repetitions = Path(sys.argv[1]) / "transformer", int(sys.argv[2])
    torch.set_num_threads(os.cpu_count())
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model = SD3Transformer2DModel.from_pretrained(folder, torch_dtype=dtype).eval()
        config = model.config
        inputs = {
            "hidden_states": torch.randn(BATCH, config.in_channels, 8, 8, dtype=dtype),
            "encoder_hidden_states": torch.randn(BATCH, TEXT_TOKENS, config.joint_attention_dim, dtype=dtype),
            "pooled_projections": torch.randn(BATCH, config.pooled_projection_dim, dtype=dtype),
            "timestep": torch.full((BATCH,), 500.0),
        }
        for mode, run in (("eager", model), ("compiled", torch.compile(model, mode="max-autotune-no-cudagraphs"))):
            for _ in range(3):
                run(**inputs, return_dict=False)
            seconds = []
            for _ in range(repetitions):
                start = time.perf_counter()
                run(**inputs, return_dict=False)
                seconds.append(time.perf_counter() - start)
            print(json.dumps({"dtype": name, "mode": mode, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
