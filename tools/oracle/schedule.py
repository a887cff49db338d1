"""FlowMatchEulerDiscreteScheduler -> tests/fixtures/schedule.json. Values are f32, printed exactly.

Every key of the scheduler's config, set up as StableDiffusion3Pipeline does for images of some numbers of tokens.
`use_beta_sigmas` needs scipy.
"""

import json

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

from common import FIXTURES

DYNAMIC = dict(use_dynamic_shifting=True)
OWN_LINE = dict(DYNAMIC, base_shift=0.7, max_shift=2.5, base_image_seq_len=64, max_image_seq_len=2048)

# Config, numbers of steps, numbers of tokens.
CASES = [
    (dict(shift=3.0), (1, 2, 5, 10, 14, 20, 28, 40), (1024,)),
    (dict(), (10,), (1024,)),
    (dict(shift=3.0, num_train_timesteps=250), (7,), (1024,)),
    (DYNAMIC, (2, 28), (64, 1024, 4096)),
    (dict(DYNAMIC, shift=3.0), (10,), (1024,)),
    (dict(DYNAMIC, time_shift_type="linear"), (10,), (64, 1024)),
    (OWN_LINE, (10,), (64, 600)),
    (dict(OWN_LINE, time_shift_type="linear"), (10,), (600,)),
    (dict(shift=3.0, shift_terminal=0.02), (2, 10), (1024,)),
    (dict(DYNAMIC, shift_terminal=0.1), (10,), (1024,)),
    (dict(shift=3.0, shift_terminal=0.0), (10,), (1024,)),
] + [
    (dict(base, **{f"use_{curve}_sigmas": True}), steps, (1024,))
    for curve in ("karras", "exponential", "beta")
    for base, steps in (
        (dict(shift=3.0), (1, 10)),
        (dict(DYNAMIC, shift_terminal=0.1), (10,)),
        (dict(shift=3.0, sigma_min=0.01, sigma_max=0.9), (10,)),
    )
]


def main():
    rows = []
    for config, counts, sizes in CASES:
        for n in counts:
            for tokens in sizes:
                # Keys that the class does not know stay in its config: sigma_min and sigma_max are looked for there.
                s = FlowMatchEulerDiscreteScheduler.from_config(config)
                c = s.config
                trained = s.timesteps / c.num_train_timesteps
                line = (c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
                s.set_timesteps(n, mu=calculate_shift(tokens, *line) if c.use_dynamic_shifting else None)
                # Every 50th of the training levels, from 0.
                trained = [0.0] + [float(v) for v in trained.flip(0)][49::50]
                rows.append(dict(config=config, steps=n, tokens=tokens, sigmas=[float(v) for v in s.sigmas],
                                 timesteps=[float(v) for v in s.timesteps], trained=trained))
                assert all(float(np.float32(v)) == v for v in rows[-1]["sigmas"])
    (FIXTURES / "schedule.json").write_text(
        "[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    for r in rows:
        print(r["config"], r["steps"], r["tokens"], r["sigmas"][:2], r["sigmas"][-2:], r["timesteps"][-1])


if __name__ == "__main__":
    main()
