"""diffusers' get_scheduler -> tests/fixtures/lr_schedule.json: the learning rate of every update, and the one after."""

import json

import torch
from diffusers.optimization import get_scheduler

from common import FIXTURES

# Updates of warm-up and of the whole run; the last warm-up is longer than its run.
SIZES = [(0, 1), (0, 7), (3, 10), (5, 64), (9, 6)]


def main():
    rows = []
    for schedule in ("constant", "linear", "cosine"):
        for lr in (3e-4, 1e-3):
            for warmup, total in SIZES:
                optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
                name = "constant_with_warmup" if schedule == "constant" and warmup else schedule
                scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
                values = []
                for _ in range(total + 1):
                    values.append(optimizer.param_groups[0]["lr"])
                    optimizer.step()
                    scheduler.step()
                rows.append(dict(schedule=schedule, warmup=warmup, total=total, lr=lr, values=values))
    (FIXTURES / "lr_schedule.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
