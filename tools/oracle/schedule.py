"""FlowMatchEulerDiscreteScheduler -> tests/fixtures/schedule.json. Values are f32, printed exactly."""

import json

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from common import FIXTURES


def main():
    rows = []
    for shift, counts in ((3.0, (1, 2, 5, 10, 14, 20, 28, 40)), (1.0, (10,))):
        for n in counts:
            s = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
            s.set_timesteps(n)
            rows.append(dict(shift=shift, steps=n, sigmas=[float(v) for v in s.sigmas],
                             timesteps=[float(v) for v in s.timesteps]))
            assert all(float(np.float32(v)) == v for v in rows[-1]["sigmas"])
    (FIXTURES / "schedule.json").write_text(
        "[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    for r in rows:
        print(r["shift"], r["steps"], r["sigmas"][:2], r["sigmas"][-2:], r["timesteps"][-1])


if __name__ == "__main__":
    main()
