"""One RAM training step with LoRA gradients by autograd -> tests/fixtures/ram_step/*.

x_t = (1-t) x0 + t noise, y = noise - x0, target = v_ref + m A (y - v_old), loss = mean (v_theta - sg(target))^2.
LoRA is applied by PEFT; the adapters "default" (theta) and "old" share the base weights. `paper.*` is Eq. 17 of the
paper, where v_theta under a stop-gradient takes the place of v_old.
"""

import json

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig

from common import FIXTURES, case_dir, generator, quiet, randn, save_io

ATTN = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
FF = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
CASES = {
    "a": dict(model="mmdit/sd35", rank=4, alpha=8, targets=[f"attn.{t}" for t in ATTN], reward_multiplier=10.0,
              batch=3, h=8, w=10, length=6, paper=True),
    "b": dict(model="mmdit/sd3", rank=4, alpha=8, targets=[f"attn.{t}" for t in ATTN] + FF, reward_multiplier=100.0,
              batch=2, h=6, w=8, length=5, paper=False),
    # Suffixes without "attn." also match attn2.
    "c": dict(model="mmdit/sd35", rank=2, alpha=8, targets=["to_q", "to_k", "to_v", "to_out.0"],
              reward_multiplier=10.0, batch=2, h=8, w=8, length=7, paper=False),
}


def lora_parameters(model, adapter):
    """diffusers module name + ".lora_A.weight"/".lora_B.weight" -> parameter."""
    out = {}
    for key, p in model.named_parameters():
        if f".lora_A.{adapter}.weight" in key or f".lora_B.{adapter}.weight" in key:
            out[key.replace(f".{adapter}.weight", ".weight")] = p
    return out


def add_lora(model, c, adapter, g):
    model.add_adapter(LoraConfig(r=c["rank"], lora_alpha=c["alpha"], target_modules=c["targets"]), adapter)
    params = lora_parameters(model, adapter)
    with torch.no_grad():
        for key, p in sorted(params.items()):
            # x A^T is O(1); B small enough that the adapter nudges the velocity by some tens of percent.
            p.copy_(randn(g, *p.shape, std=p.shape[1] ** -0.5 if "lora_A" in key else 0.05))
    return params


def main():
    quiet()
    for name, c in CASES.items():
        d, g = case_dir("ram_step", name), generator("ram_step/" + name)
        model = SD3Transformer2DModel.from_pretrained(FIXTURES / c["model"]).eval()
        model.requires_grad_(False)
        old, theta = add_lora(model, c, "old", g), add_lora(model, c, "default", g)
        n = c["batch"]
        x0, noise = randn(g, n, 16, c["h"], c["w"]), randn(g, n, 16, c["h"], c["w"])
        t, advantage = torch.tensor([0.7, 0.21, 0.98])[:n], torch.tensor([0.8, -1.3, 0.4])[:n]
        cond = randn(g, n, c["length"], model.config.joint_attention_dim)
        pooled = randn(g, n, model.config.pooled_projection_dim)

        r4 = lambda v: v.reshape(-1, 1, 1, 1)
        x_t, y = (1 - r4(t)) * x0 + r4(t) * noise, noise - x0
        m = c["reward_multiplier"]

        def forward():
            return model(hidden_states=x_t, timestep=1000 * t, encoder_hidden_states=cond, pooled_projections=pooled,
                         return_dict=False)[0]

        def step(v, target, prefix):
            for p in theta.values():
                p.grad = None
            v.retain_grad()
            loss = ((v - target.detach()) ** 2).mean(dim=(1, 2, 3)).mean()
            loss.backward()
            out = {f"{prefix}loss": loss.reshape(1), f"{prefix}dbg.dv": v.grad}
            for key, p in theta.items():
                # The last block drops its context output, so its context queries reach nothing: gradient exactly 0.
                dead = key.startswith(f"transformer_blocks.{len(model.transformer_blocks) - 1}.attn.add_q_proj")
                assert (p.grad.abs().max() == 0) == dead, key
                out[f"{prefix}grad.{key}"] = p.grad.clone()
            return out

        with torch.no_grad():
            model.disable_adapters()
            v_ref = forward()
            model.enable_adapters()
            model.set_adapter("old")
            v_old = forward()
        model.set_adapter("default")
        for key, p in model.named_parameters():
            p.requires_grad_(any(p is q for q in theta.values()))
        v = forward()
        assert min((v - v_ref).abs().max(), (v - v_old).abs().max(), (v_ref - v_old).abs().max()) > 0.05

        io = dict(x0=x0, noise=noise, t=t, advantage=advantage, prompt_embeds=cond, pooled_prompt_embeds=pooled,
                  velocity=v.detach().clone(), velocity_ref=v_ref, velocity_old=v_old)
        io |= {f"lora.{k}": p for k, p in theta.items()} | {f"lora_old.{k}": p for k, p in old.items()}
        io |= step(v, v_ref + m * r4(advantage) * (y - v_old), "")
        if c["paper"]:
            v = forward()
            io |= step(v, v_ref + m * r4(advantage) * (y - v.detach()), "paper.")
        save_io(d, io)
        case = {k: c[k] for k in ("model", "rank", "alpha", "targets", "reward_multiplier")} | {"guidance": None}
        case["modules"] = sorted({k.rsplit(".lora_", 1)[0] for k in theta})
        (d / "case.json").write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main()
