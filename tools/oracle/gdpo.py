"""Advantages of several rewards, each normalised in its group before they are added: tests/fixtures/gdpo.json.

What Flow-Factory computes (`advantage/advantage_processor.py`, `compute_gdpo`), in numpy: GDPO, arXiv 2601.05242.
"""

import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[2] / "tests/fixtures/gdpo.json"
FLOOR = 1e-6


def main():
    random = np.random.default_rng(7)
    group = random.permutation(np.repeat(np.arange(5), 6))
    weights = [1.0, 0.25, -2.0]
    rewards = [random.normal(size=30), 50 + 20 * random.random(30), random.integers(0, 2, 30).astype(float)]
    # A group that one reward cannot tell apart, one that differs by less than the floor, and one that none can.
    rewards[0][group == 1] = 0.1
    rewards[1][group == 3] = 60 + 1e-9 * np.arange(6)
    for reward in rewards:
        reward[group == 4] = 0.7
    total = np.zeros(30)
    for weight, reward in zip(weights, rewards):
        for g in range(5):
            of_group = reward[group == g]
            total[group == g] += weight * (of_group - of_group.mean()) / max(of_group.std(), FLOOR)
    advantages = (total - total.mean()) / max(total.std(), FLOOR)
    fixture = {
        "group": group.tolist(),
        "weights": weights,
        "rewards": [reward.tolist() for reward in rewards],
        "sum": total.tolist(),
        "advantages": advantages.tolist(),
    }
    OUT.write_text(json.dumps(fixture) + "\n")


if __name__ == "__main__":
    main()
