"""One training step of SFT, RWR, DPO, DGPO and CRD with LoRA gradients by autograd -> tests/fixtures/method_step/*.

The losses are written elementwise, as flow_grpo (SFT, DPO) and Flow-Factory (DGPO, CRD) have them. LoRA is applied by PEFT; the
adapters "default" (theta) and "old", which is the reference of DPO, share the base weights.
"""

import json

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel

from common import FIXTURES, case_dir, generator, quiet, randn, save_io
from method_step import LENGTH, LORA, MODEL, mean
from ram_step import add_lora

SHAPE = (4, 16, 4, 6)
SCALE = 3.0
ADVANTAGE = [0.8, -1.3, 0.0, 7.0]
CASES = {
    "sft": ("sft", "", [1.0, 0.0, 1.0, 1.0]),
    "rwr": ("rwr", "", [0.5, -0.25, 2.0, 0.0]),
    "dpo": ("dpo", "[dpo]\nbeta = 2.0\n", [1.0, -1.0, -1.0, 1.0]),
    "dgpo": ("dgpo", f"[dgpo]\nkl_weight = 0.1\nkl_guidance_scale = {SCALE}\nclip_kl = true\n", ADVANTAGE),
    "dgpo_old": ("dgpo", "[dgpo]\nbeta = 1.0\nkl_weight = 0.0\nreference = 'old'\n", ADVANTAGE),
    "crd": ("crd", f"[crd]\nbeta = 0.7\nkl_guidance_scale = {SCALE}\n", ADVANTAGE),
    "crd_softmax": ("crd", "[crd]\nloss = 'bce'\ntemperature = 0.5\nadaptive = false\nadaptive_kl = false\n"
                    "kl_weight = 0.0\n", ADVANTAGE),
}
# Not side by side.
PAIR, GROUP = [0, 1, 0, 1], [0, 1, 0, 0]


def error(v, y):
    return mean((v - y) ** 2)


def members(numbers):
    """The rows of each pair or group."""
    return [[i for i, n in enumerate(numbers) if n == number] for number in sorted(set(numbers))]


def dpo(io, y, theta, reference):
    terms = []
    for pair in members(PAIR):
        winner, loser = sorted(pair, key=lambda i: -io["advantage"][i])
        excess = error(theta, y) - error(reference, y)
        terms.append(-F.logsigmoid(-0.5 * 2.0 * (excess[winner] - excess[loser])))
    return torch.stack(terms).mean()


def dgpo(io, y, theta, reference, old, beta, kl_weight, clips_kl):
    a = io["advantage"].clamp(-5, 5)
    dsm = error(theta, y)
    delta = dsm.detach() - error(old if reference is None else reference, y)
    weight = torch.zeros_like(a)
    for group in members(GROUP):
        weight[group] = torch.sigmoid((a[group] * beta * delta[group] / len(group)).sum())
    ratio = torch.exp(-dsm.detach() + error(old, y))
    clipped = torch.where(a > 0, ratio > 1.05, ratio < 0.95)
    print("  clipped:", clipped.tolist())
    loss = (weight * a * torch.where(clipped, dsm.detach(), dsm)).mean()
    if kl_weight > 0:
        distance = mean((theta - reference) ** 2)
        loss = loss + kl_weight * torch.where(clipped & clips_kl, distance.detach(), distance).mean()
    return loss


def crd(io, y, theta, reference, old, beta, softmax):
    rewards = (io["advantage"].clamp(-5, 5) / 5 / 2 + 0.5).clamp(0, 1)

    def matched(v):
        weight = 1.0 if softmax else mean((v - y).abs().double()).clip(min=1e-5).detach().view(-1, 1, 1, 1)
        return mean((v - y) ** 2 / weight)

    implicit = -(matched(theta) - matched(old))
    rows = torch.zeros(len(rewards), dtype=implicit.dtype)
    for group in members(GROUP):
        r, reward = implicit[group], rewards[group]
        if not softmax:
            centred = r - r.mean().detach()
            rows[group] = (beta * centred - (reward - reward.mean())) ** 2
            continue
        for sign in (1, -1):
            p = torch.softmax(sign * reward / 0.5, dim=0)
            centred, target = r - (p * r).sum().detach(), reward - (p * reward).sum()
            loss = F.binary_cross_entropy_with_logits(beta * centred, torch.sigmoid(target).to(r.dtype), reduction="none")
            rows[group] = rows[group] + 0.5 * loss
    loss = rows.mean() * 5 / beta
    if not softmax:
        least = 1e-4 / 0.1
        loss = loss + 0.1 * ((least + rewards * (1 - least)) * mean((theta - reference) ** 2)).mean()
    return loss


def loss_of(name, io, theta, reference, old):
    y = io["noise"] - io["x0"]
    if name in ("sft", "rwr"):
        return (io["advantage"] * error(theta, y)).mean()
    if name == "dpo":
        return dpo(io, y, theta, old)
    if name == "dgpo":
        return dgpo(io, y, theta, reference, old, 10.0, 0.1, True)
    if name == "dgpo_old":
        return dgpo(io, y, theta, None, old, 1.0, 0.0, False)
    return crd(io, y, theta, reference, old, 0.7 if name == "crd" else 1.0, name == "crd_softmax")


def main():
    quiet()
    for name, (algorithm, tables, advantage) in CASES.items():
        d, g = case_dir("method_step", name), generator("method_step/" + name)
        model = SD3Transformer2DModel.from_pretrained(FIXTURES / MODEL).eval()
        model.requires_grad_(False)
        old, theta = add_lora(model, LORA, "old", g), add_lora(model, LORA, "default", g)
        n = SHAPE[0]
        io = dict(advantage=torch.tensor(advantage), x0=randn(g, *SHAPE), noise=randn(g, *SHAPE))
        io["t"] = torch.tensor([0.7, 0.21, 0.98, 0.5])
        io["prompt_embeds"] = randn(g, n, LENGTH, model.config.joint_attention_dim)
        io["pooled_prompt_embeds"] = randn(g, n, model.config.pooled_projection_dim)
        if algorithm == "dpo":
            io["pair"] = torch.tensor(PAIR, dtype=torch.float32)
            for pair in members(PAIR):
                io["t"][pair[1]], io["noise"][pair[1]] = io["t"][pair[0]], io["noise"][pair[0]]
        if algorithm in ("dgpo", "crd"):
            io["group"] = torch.tensor(GROUP, dtype=torch.float32)
            for group in members(GROUP):
                io["t"][group] = io["t"][group[0]].clone()
        is_guided = "kl_guidance_scale" in tables
        if is_guided:
            io["negative_prompt_embeds"] = randn(g, 1, LENGTH, model.config.joint_attention_dim)
            io["negative_pooled_prompt_embeds"] = randn(g, 1, model.config.pooled_projection_dim)
        t = io["t"].view(-1, 1, 1, 1)
        x = (1 - t) * io["x0"] + t * io["noise"]

        def forward(embeds, pooled):
            return model(hidden_states=x, timestep=1000 * io["t"], encoder_hidden_states=embeds.expand(n, -1, -1),
                         pooled_projections=pooled.expand(n, -1), return_dict=False)[0]

        prompts = io["prompt_embeds"], io["pooled_prompt_embeds"]
        with torch.no_grad():
            model.disable_adapters()
            reference = forward(*prompts)
            if is_guided:
                u = forward(io["negative_prompt_embeds"], io["negative_pooled_prompt_embeds"])
                reference = u + SCALE * (reference - u)
            model.enable_adapters()
            model.set_adapter("old")
            v_old = forward(*prompts)
        model.set_adapter("default")
        for p in model.parameters():
            p.requires_grad_(any(p is q for q in theta.values()))
        v = forward(*prompts)
        loss = loss_of(name, io, v, reference, v_old)
        loss.backward()
        lagged = "ref" if algorithm == "dpo" else "old"
        io |= dict(velocity=v.detach(), velocity_ref=v_old if algorithm == "dpo" else reference, velocity_old=v_old)
        io |= dict(loss=loss.detach().float().reshape(1))
        io |= {f"lora.{k}": p for k, p in theta.items()} | {f"lora_{lagged}.{k}": p for k, p in old.items()}
        io |= {f"grad.{k}": p.grad.clone() for k, p in theta.items()}
        save_io(d, io)
        case = LORA | dict(model=MODEL, tables=tables, algorithm=algorithm)
        (d / "case.json").write_text(json.dumps(case, indent=1) + "\n")
        print(name, float(loss))


if __name__ == "__main__":
    main()
