"""One training step of AWM, DiffusionNFT and the GRPO family with LoRA gradients by autograd -> tests/fixtures/method_step/*.

The losses are written elementwise, as the published programs have them, not by inner products as the engine does. LoRA is
applied by PEFT; the adapters "default" (theta) and "old" share the base weights.
"""

import json
import math

import torch
from diffusers import SD3Transformer2DModel

from common import FIXTURES, case_dir, generator, quiet, randn, save_io
from ram_step import add_lora

MODEL = "mmdit/sd3"
LORA = dict(rank=2, alpha=4, targets=["attn.to_q", "attn.to_v", "attn.add_k_proj"])
STEPS, SHIFT = 10, 3.0
SHAPE, LENGTH = (3, 16, 4, 6), 5
CASES = {
    "awm": "[awm]\nkl_weight = 0.003\n",
    "awm_off_policy": "[awm]\nweighting = 't2'\nclip_low = 0.2\nclip_high = 0.2\nkl_form = 'elbo'\n",
    "nft": "[nft]\nbeta = 0.3\n",
    "flow_grpo": "[rollout]\nnum_inference_steps = 10\nsampler = 'flow'\nnoise_level = 0.7\nguidance_scale = 2.5\n"
    "[flow_grpo]\nclip_low = 0.02\nclip_high = 0.03\nkl_weight = 0.04\n",
    "cps": "[rollout]\nnum_inference_steps = 10\nsampler = 'cps'\nnoise_level = 0.8\nguidance_scale = 1.0\n"
    "[cps]\nclip_low = 0.02\nclip_high = 0.03\nkl_weight = 0.0\n",
    "grpo_guard": "[rollout]\nnum_inference_steps = 10\nsampler = 'flow'\nnoise_level = 0.7\nguidance_scale = 2.5\n"
    "[grpo_guard]\nclip_low = 0.02\nclip_high = 0.03\nkl_weight = 0.04\ncfg_uncond_grad = false\n",
    # Steps 0, 3 and 5 have 6, 10 and no forks: the last row is an anchor.
    "rsm": "[rollout]\nnum_inference_steps = 10\nsampler = 'flow'\nnoise_level = 0.7\nguidance_scale = 2.5\n"
    "[rsm]\nprofile = 'lowsnr2'\nloss = 'matching'\nreweight = 'fairclip2'\nkl_weight = 0.04\n",
    "rsm_ppo": "[rollout]\nnum_inference_steps = 10\nsampler = 'flow'\nnoise_level = 0.7\nguidance_scale = 1.0\n"
    "[rsm]\nprofile = 'highsnr'\nloss = 'ppo'\nreweight = 'guard'\nclip_range = 0.05\nkl_weight = 0.04\n"
    "kl_denominator = 'std_dev'\n",
    "rsm_first_order": "[rollout]\nguidance_scale = 2.5\n[rsm_first_order]\nreward_scale = 3.0\n",
    "rsm_first_order_square": "[rollout]\nguidance_scale = 1.0\n"
    "[rsm_first_order]\nschedule = 'square'\nreward_scale = 1e3\n",
    "rsm_first_order_one_step": "[rollout]\nguidance_scale = 2.5\n"
    "[rsm_first_order]\ngradient = 'one_step'\nschedule = 'square'\nreward_scale = 10.0\n",
}
FORKS = {"rsm": [6, 6, 8, 10, 0, 0, 0, 0, 0], "rsm_ppo": [3, 3, 4, 5, 6, 7, 7, 8, 11]}


def sigmas():
    """SD3's grid of `STEPS` steps with a static shift, ending in 0, as diffusers computes it."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)
    scheduler.set_timesteps(STEPS)
    return [float(s) for s in scheduler.sigmas]


def mean(x):
    """Over everything but the rows."""
    return x.mean(dim=(1, 2, 3))


def clipped(advantage, ratio, low=0.02, high=0.03):
    """PPO's surrogate of each row."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))


def flow_step(x, v, step, grid):
    """Mean, deviation and noise level of a Flow-SDE step with level 0.7 (flow_grpo's sde_step_with_logprob)."""
    sigma, dt = grid[step], grid[step + 1] - grid[step]
    level = 0.7 * math.sqrt(sigma / (1 - (grid[1] if sigma == 1 else sigma)))
    mu = x * (1 + level**2 / (2 * sigma) * dt) + v * (1 + level**2 * (1 - sigma) / (2 * sigma)) * dt
    return mu, level * math.sqrt(-dt), level


def cps_step(x, v, step, grid):
    """Mean and deviation of a coefficients-preserving step with level 0.8."""
    sigma, after = grid[step], grid[step + 1]
    s = after * math.sin(0.8 * math.pi / 2)
    mu = (1 - after) * (x - sigma * v) + math.sqrt(after**2 - s**2) * (x + (1 - sigma) * v)
    return mu, s, 0.0


def matching_loss(name, io, theta, reference, old):
    """AWM and NFT: of clean latents."""
    y, a = io["noise"] - io["x0"], io["advantage"]
    t = io["t"]
    reference_distance = mean((theta - reference) ** 2)
    if name == "nft":
        r = (a.clamp(-5, 5) / 5 / 2 + 0.5).clamp(0, 1)
        x_t = (1 - t.view(-1, 1, 1, 1)) * io["x0"] + t.view(-1, 1, 1, 1) * io["noise"]
        sides = []
        for sign in (1, -1):
            v = old + sign * 0.3 * (theta - old)
            clean = x_t - t.view(-1, 1, 1, 1) * v
            weight = mean((clean - io["x0"]).abs().double()).clip(min=1e-5).detach().float()
            sides.append(mean((clean - io["x0"]) ** 2) / weight)
        return (5 * (r * sides[0] + (1 - r) * sides[1]) / 0.3 + 1e-4 * reference_distance).mean()
    error = mean((theta - y) ** 2)
    a = a.clamp(-5, 5) / 5
    old_distance = mean((theta - old) ** 2)
    if name == "awm":
        logp = -((error + 1e-10) ** 0.25 - 1e-10**0.25) * t / 0.25
        ratio = torch.exp(logp - logp.detach())
        return (clipped(a, ratio, 1, 1) + 0.003 * reference_distance + old_distance).mean()
    ratio = torch.exp(-(t**2) * error - io["log_prob_old"])
    weight = 1 / (2 * 0.49 * t / (1 - t.clamp(max=0.99)))
    return (clipped(a, ratio, 0.2, 0.2) + 0.001 * weight * reference_distance + old_distance).mean()


def step_loss(name, io, theta, reference, grid):
    """Flow-GRPO, CPS and GRPO-Guard: of steps of a rollout."""
    take = cps_step if name == "cps" else flow_step
    rows = []
    for i, step in enumerate(int(s) for s in io["step"]):
        x, after, a = io["x"][i], io["x_next"][i], io["advantage"][i].clamp(-5, 5)
        mu, s, level = take(x, theta[i], step, grid)
        if name == "cps":
            logp = -((after - mu) ** 2).mean()
        else:
            logp = (-((after - mu) ** 2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)).mean()
        change, weight = logp - io["log_prob_old"][i], 1.0
        if name == "grpo_guard":
            change = (change + ((mu - io["mean_old"][i]) ** 2).mean() / (2 * s**2)) * s
            weight = 1 / (grid[step] - grid[step + 1])
        row = clipped(a, torch.exp(change)) * weight
        if name != "cps":
            row = row + 0.04 * ((mu - take(x, reference[i], step, grid)[0]) ** 2).mean() / (2 * level**2)
        rows.append(row)
    return torch.stack(rows).mean()


def rsm_loss(name, io, theta, reference, grid):
    """RSM: the hinge of the matching terms (fairclip2), or the guard's surrogate, over forks; anchors where there are none."""
    forks = FORKS[name]
    active = [k for k in forks if k]
    middle, steps = sum(active) / len(active), [int(s) for s in io["step"]]
    policy, near, anchored = [], [], []
    for i, step in enumerate(steps):
        a, length = io["advantage"][i].clamp(-5, 5), grid[step] - grid[step + 1]
        mu, s, level = flow_step(io["x"][i], theta[i], step, grid)
        variance = level**2 if name == "rsm_ppo" else level**2 * length
        kl = ((mu - flow_step(io["x"][i], reference[i], step, grid)[0]) ** 2).mean() / (2 * variance)
        if forks[step] == 0:
            anchored.append(kl * middle)
            continue
        near.append(kl * middle / forks[step])
        if name == "rsm":
            w = math.sqrt(length) / level * (1 + (1 - grid[step]) / (2 * grid[step]) * level**2)
            moved = w * (theta[i] - io["velocity_old"][i])
            terms = ((moved**2).mean() / 2 + (moved * io["noise"][i]).mean()) * level**2 * length
            row = torch.relu(1e-4 * a.abs() + a * terms) / (level**2 * length) * level / math.sqrt(length)
        else:
            logp = (-((io["x_next"][i] - mu) ** 2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)).mean()
            change = logp - io["log_prob_old"][i] + ((mu - io["mean_old"][i]) ** 2).mean() / (2 * s**2)
            row = clipped(a, torch.exp(change * s), 0.05, 0.05) / length
        policy.append(row * middle / forks[step])
    loss = torch.stack(policy).sum() / len(policy) + 0.04 * torch.stack(near).mean()
    return loss + 0.04 * torch.stack(anchored).mean() if anchored else loss


def led_loss(name, io, theta, reference):
    """First-order RSM: what is matched is the reference, moved along the reward's gradient."""
    rest = (1 - io["t"]).view(-1, 1, 1, 1)
    strength = {"square": 1e3 * rest**2, "step": 10 * rest**2}.get(name.rsplit("_", 1)[1], 3 * rest)
    return ((theta - (reference - strength * io["reward_grad"])) ** 2).mean()


def one_step_gradient(x, t, velocity):
    """That of a reward at the clean latent a step points at, to the step's own latent; the velocity is a constant."""
    x = x.clone().requires_grad_()
    clean = x - t * velocity.detach()
    reward = (torch.sin(3 * clean) * torch.tanh(clean)).sum()
    return torch.autograd.grad(reward, x)[0]


def main():
    quiet()
    grid = sigmas()
    for name, tables in CASES.items():
        d, g = case_dir("method_step", name), generator("method_step/" + name)
        model = SD3Transformer2DModel.from_pretrained(FIXTURES / MODEL).eval()
        model.requires_grad_(False)
        old, theta = add_lora(model, LORA, "old", g), add_lora(model, LORA, "default", g)
        n, is_matching = SHAPE[0], name.startswith(("awm", "nft"))
        is_led = name.startswith("rsm_first_order")
        io = {} if is_led else dict(advantage=torch.tensor([0.8, -1.3, 0.4]))
        io["prompt_embeds"] = randn(g, n, LENGTH, model.config.joint_attention_dim)
        io["pooled_prompt_embeds"] = randn(g, n, model.config.pooled_projection_dim)
        scale = 2.5 if "guidance_scale = 2.5" in tables else None
        if scale:
            io["negative_prompt_embeds"] = randn(g, 1, LENGTH, model.config.joint_attention_dim)
            io["negative_pooled_prompt_embeds"] = randn(g, 1, model.config.pooled_projection_dim)
        if is_matching:
            io |= dict(x0=randn(g, *SHAPE), noise=randn(g, *SHAPE), t=torch.tensor([0.7, 0.21, 0.98]))
            t = io["t"].view(-1, 1, 1, 1)
            x, time = (1 - t) * io["x0"] + t * io["noise"], 1000 * io["t"]
        elif is_led:
            # Of the sizes that the strengths make comparable with velocities.
            scale_of = 1e-3 if name.endswith("square") else 0.3
            io |= dict(x=randn(g, *SHAPE), t=torch.tensor([0.7, 0.21, 0.98]), reward_grad=scale_of * randn(g, *SHAPE))
            x, time = io["x"], 1000 * io["t"]
        else:
            io |= dict(x=randn(g, *SHAPE), step=torch.tensor([0.0, 3.0, 5.0]))
            x, time = io["x"], 1000 * torch.tensor([grid[int(s)] for s in io["step"]])

        def forward(trains_unconditional=True):
            v = model(hidden_states=x, timestep=time, encoder_hidden_states=io["prompt_embeds"],
                      pooled_projections=io["pooled_prompt_embeds"], return_dict=False)[0]
            if not scale:
                return v
            u = model(hidden_states=x, timestep=time,
                      encoder_hidden_states=io["negative_prompt_embeds"].expand(n, -1, -1),
                      pooled_projections=io["negative_pooled_prompt_embeds"].expand(n, -1), return_dict=False)[0]
            return (u if trains_unconditional else u.detach()) * (1 - scale) + v * scale

        with torch.no_grad():
            model.disable_adapters()
            reference = forward()
            model.enable_adapters()
            model.set_adapter("old")
            v_old = forward()
        model.set_adapter("default")
        for p in model.parameters():
            p.requires_grad_(any(p is q for q in theta.values()))
        v = forward("cfg_uncond_grad = false" not in tables and not is_led)
        if is_matching:
            if name == "awm_off_policy":
                error = mean((v.detach() - io["noise"] + io["x0"]) ** 2)
                io["log_prob_old"] = -io["t"] ** 2 * error - torch.tensor([0.01, 0.3, -0.02])
            loss = matching_loss(name, io, v, reference, v_old)
        elif is_led:
            if name.endswith("one_step"):
                io["reward_grad"] = 0.1 * one_step_gradient(x, io["t"].view(-1, 1, 1, 1), v)
            loss = led_loss(name, io, v, reference)
        else:
            # Sampled by a policy between the two, so that ratios differ from 1.
            # What RSM matches is the difference itself, which is not to drown in the rounding of velocities: one hinge is
            # closed, the next open.
            far = torch.tensor([1.0, -1.0, 1.0] if name == "rsm" else [0.02] * n).view(-1, 1, 1, 1)
            near = v.detach() + far * (v_old - v.detach())
            take = cps_step if name == "cps" else flow_step
            steps = [take(x[i], near[i], int(s), grid) for i, s in enumerate(io["step"])]
            io["mean_old"] = torch.stack([mu for mu, _, _ in steps])
            noise = randn(g, *SHAPE)
            io |= dict(velocity_old=near, noise=noise) if name == "rsm" else {}
            io["x_next"] = torch.stack([mu + s * e for (mu, s, _), e in zip(steps, noise)])
            square = mean((io["x_next"] - io["mean_old"]) ** 2)
            s = torch.tensor([s for _, s, _ in steps])
            logp = -square if name == "cps" else -square / (2 * s**2) - s.log() - 0.5 * math.log(2 * math.pi)
            io["log_prob_old"] = logp
            loss = (rsm_loss if name.startswith("rsm") else step_loss)(name, io, v, reference, grid)
        loss.backward()
        io |= dict(velocity=v.detach(), velocity_ref=reference, loss=loss.detach().reshape(1))
        io.setdefault("velocity_old", v_old)
        io |= {f"lora.{k}": p for k, p in theta.items()} | {f"lora_old.{k}": p for k, p in old.items()}
        io |= {f"grad.{k}": p.grad.clone() for k, p in theta.items()}
        save_io(d, io)
        parts = [name.removesuffix(end) for end in ("_off_policy", "_ppo", "_square", "_one_step") if name.endswith(end)]
        case = LORA | dict(model=MODEL, tables=tables, algorithm=parts[0] if parts else name)
        (d / "case.json").write_text(json.dumps(case, indent=1) + "\n")
        print(name, float(loss))


if __name__ == "__main__":
    main()
