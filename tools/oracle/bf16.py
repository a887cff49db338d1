"""PyTorch's own error in bf16, for the components that have no bf16 fixture -> tests/fixtures/bf16.json.

Weights are rounded to bf16; the error is that of bf16 arithmetic against f32 arithmetic on those weights.
"""

import json

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import T5EncoderModel

from common import FIXTURES


def relative_error(got, want):
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


@torch.no_grad()
def main():
    errors = {}
    folder = FIXTURES / "t5" / "gated"
    ids = load_file(folder / "io.safetensors")["input_ids"]
    run = lambda dtype: T5EncoderModel.from_pretrained(folder).bfloat16().to(dtype).eval()(ids).last_hidden_state
    errors["t5/gated"] = relative_error(run(torch.bfloat16), run(torch.float32))
    folder = FIXTURES / "autoencoder" / "vae16"
    latent = load_file(folder / "io.safetensors")["latent"].bfloat16()
    run = lambda dtype: AutoencoderKL.from_pretrained(folder).bfloat16().to(dtype).eval().decode(latent.to(dtype)).sample
    errors["autoencoder/vae16"] = relative_error(run(torch.bfloat16), run(torch.float32))
    (FIXTURES / "bf16.json").write_text(json.dumps(errors, indent=1) + "\n")
    print(errors)


if __name__ == "__main__":
    main()
