"""Does diffusers load a LoRA that the engine wrote, and compute the same velocity with it? By hand:

    cargo test --release --test main a_lora_written_here      # leaves its files in target/tmp/lora_roundtrip
    python tools/oracle/lora_roundtrip.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from common import ROOT, quiet
from pipeline import load


def velocity(transformer, io):
    return transformer(
        hidden_states=io["latent"], timestep=io["timestep"], encoder_hidden_states=io["prompt_embeds"],
        pooled_projections=io["pooled_prompt_embeds"], return_dict=False)[0]


def error(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


@torch.no_grad()
def main():
    quiet()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "target" / "tmp" / "lora_roundtrip"
    io, lora = load_file(folder / "io.safetensors"), load_file(folder / "pytorch_lora_weights.safetensors")
    pipe = load()
    base = error(velocity(pipe.transformer, io), io["base_velocity"])
    pipe.load_lora_weights(folder)
    layers = {name: m for name, m in pipe.transformer.named_modules() if isinstance(m, LoraLayer)}
    loaded = {f"transformer.{n}.lora_{f}.weight": getattr(m, f"lora_{f}")["default_0"].weight
              for n, m in layers.items() for f in "AB"}
    assert loaded.keys() == lora.keys(), loaded.keys() ^ lora.keys()
    assert all(torch.equal(loaded[k], lora[k]) for k in lora)
    scales = {m.scaling["default_0"] for m in layers.values()}
    adapted = error(velocity(pipe.transformer, io), io["velocity"])
    effect = error(io["base_velocity"], io["velocity"])
    print(f"{len(layers)} layers, scale {scales}; relative error of the velocity: base {base:.1e}, "
          f"with the LoRA {adapted:.1e}; the LoRA changes it by {effect:.2f}")
    assert base < 1e-5 and adapted < 1e-5 and effect > 0.1


if __name__ == "__main__":
    main()
