"""PyTorch's own error in bf16, for what has no bf16 fixture, and that of T5 in f16 -> tests/fixtures/bf16.json.

Weights are rounded to bf16 or f16; the error is that of arithmetic in that type against f32 arithmetic on those weights.
"""

import json

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import T5EncoderModel

from common import FIXTURES


def relative_error(got, want):
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


@torch.no_grad()
def t5_f16(ids):
    def run(dtype):
        model = T5EncoderModel.from_pretrained(FIXTURES / "t5" / "gated").half().to(dtype).eval()
        for block in model.encoder.block:
            # As transformers loads it.
            block.layer[1].DenseReluDense.wo.float()
        return model(ids).last_hidden_state
    return relative_error(run(torch.float16), run(torch.float32))


@torch.enable_grad()
def gradients(name):
    """Root mean square errors of the velocity and of the gradients of a LoRA and of the latent, relative to their size: the frozen
    weights are rounded to bf16, the factors are in single precision, as autocast trains them."""
    folder = FIXTURES / "ram_step" / name
    case, io = json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")
    t = io["t"].reshape(-1, 1, 1, 1)

    def run(dtype):
        model = SD3Transformer2DModel.from_pretrained(FIXTURES / case["model"]).eval()
        # Vectors stay as they are, as they do when matrices are rounded on loading.
        for p in model.parameters():
            p.requires_grad_(False)
            if p.dim() == 2:
                p.copy_(p.bfloat16())
        model.add_adapter(LoraConfig(r=case["rank"], lora_alpha=case["alpha"], target_modules=case["targets"]))
        factors = {k.replace(".default.weight", ".weight"): p for k, p in model.named_parameters() if "lora_" in k}
        with torch.no_grad():
            for key, p in factors.items():
                p.copy_(io["lora." + key])
        x = ((1 - t) * io["x0"] + t * io["noise"]).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            v = model(hidden_states=x, timestep=1000 * io["t"], encoder_hidden_states=io["prompt_embeds"],
                      pooled_projections=io["pooled_prompt_embeds"], return_dict=False)[0]
        v.float().backward(io["dbg.dv"])
        return [v.detach().float().flatten(), torch.cat([factors[k].grad.flatten() for k in sorted(factors)]), x.grad.flatten()]

    got, want = run(torch.bfloat16), run(torch.float32)
    return [float((g - w).double().norm() / w.double().norm()) for g, w in zip(got, want)]


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
    errors["t5/gated f16"] = t5_f16(ids)
    for case in ("a", "b"):
        errors[f"ram_step/{case}"] = gradients(case)
    (FIXTURES / "bf16.json").write_text(json.dumps(errors, indent=1) + "\n")
    print(errors)


if __name__ == "__main__":
    main()
