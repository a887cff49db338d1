"""torch.optim.AdamW with global norm clipping -> tests/fixtures/adamw.safetensors."""

import torch

from common import FIXTURES, generator, randn, save_io

SHAPES = {"a": (5, 7), "b": (11,)}
STEPS = 5


def main():
    g = generator("adamw")
    params = {k: torch.nn.Parameter(randn(g, *s)) for k, s in SHAPES.items()}
    opt = torch.optim.AdamW(params.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    io = {f"init.{k}": p.detach().clone() for k, p in params.items()}
    for step in range(STEPS):
        # Norms on both sides of the clipping threshold 1; one element is exactly zero throughout.
        for k, p in params.items():
            p.grad = randn(g, *p.shape, std=[1.0, 0.05, 0.3, 0.01, 2.0][step])
            p.grad.view(-1)[3] = 0
            io[f"step{step}.grad.{k}"] = p.grad.clone()
        io[f"step{step}.grad_norm"] = torch.nn.utils.clip_grad_norm_(params.values(), 1.0).reshape(1)
        for k, p in params.items():
            io[f"step{step}.clipped.{k}"] = p.grad.clone()
        opt.step()
        for k, p in params.items():
            io[f"step{step}.param.{k}"] = p.detach().clone()
            io[f"step{step}.exp_avg.{k}"] = opt.state[p]["exp_avg"].clone()
            io[f"step{step}.exp_avg_sq.{k}"] = opt.state[p]["exp_avg_sq"].clone()
    save_io(FIXTURES / "adamw.safetensors", io)


if __name__ == "__main__":
    main()
