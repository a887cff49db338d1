"""Samples with diffusers what `engine sample` samples; prints the seconds of each repetition, without imports and loading.

    python benches/baselines/sample.py eager|compiled MODEL STEPS GUIDANCE MAX_SEQUENCE_LENGTH REPETITIONS PROMPT...
"""

import os
import sys
import time

import torch
from diffusers import StableDiffusion3Pipeline


def main():
    mode, model, steps, guidance, length, repetitions, *prompts = sys.argv[1:]
    torch.set_num_threads(os.cpu_count())
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if mode == "compiled":
        pipe.transformer = torch.compile(pipe.transformer)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    for _ in range(int(repetitions)):
        start = time.perf_counter()
        pipe(
            prompts,
            num_inference_steps=int(steps),
            guidance_scale=float(guidance),
            max_sequence_length=int(length),
            height=64,
            width=64,
        )
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
