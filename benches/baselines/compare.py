"""Times the engine's commands and the same work in PyTorch, in turn on the same machine, and prints a Markdown table.

    cargo build --release
    python benches/baselines/compare.py [ROUNDS] > benches/results/<date>-<machine>.md

Figures are medians over all rounds, with the range; ratios are of medians. The engine's sampling time is that of the
whole process, loading included; PyTorch's leaves imports and loading out.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "target/release/engine"
HERE = Path(__file__).resolve().parent
MODEL = "models/tiny-sd3"
CONFIG = "configs/tiny/ram_jpeg.toml"
PHASES = ["rollout", "decode", "reward", "update"]
PROMPTS = [f"{n} {c} {s}s" for n in ("two", "three") for c in ("red", "green", "blue", "yellow") for s in ("square", "circle")]


def python(script, *args):
    # Threads that spin between operators: on a machine to itself PyTorch takes half the time it takes without.
    env = {**os.environ, "OMP_WAIT_POLICY": "ACTIVE"}
    command = [sys.executable, HERE / script, *map(str, args)]
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"{script} {' '.join(map(str, args))}: {out.stderr[-2000:]}")
    return out.stdout.splitlines()


def sample_engine(length):
    with tempfile.TemporaryDirectory() as out:
        args = [ENGINE, "sample", "--model", MODEL, "--steps", "28", "--guidance", "4.5", "--out", out]
        args += ["--max-sequence-length", str(length), "--prompt", *PROMPTS]
        start = time.perf_counter()
        subprocess.run(args, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start


def sample_torch(mode, length):
    lines = python("sample.py", mode, MODEL, 28, 4.5, length, 3, *PROMPTS)
    return [float(line) for line in lines][1:]


def epoch_engine(epochs):
    with tempfile.TemporaryDirectory() as out:
        args = [ENGINE, "train", "--config", CONFIG, "--output-dir", out, "--set", f"num_epochs={epochs}"]
        args += ["--set", "eval.every=0", "--set", "eval.num_prompts=1"]
        subprocess.run(args, cwd=ROOT, check=True, capture_output=True)
        lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
        return [line["seconds"] for line in lines if "seconds" in line][1:]


def epoch_torch(mode, epochs):
    return [json.loads(line) for line in python("ram_epoch.py", mode, CONFIG, epochs)][2:]


def forward_engine(dtype):
    """Seconds per iteration in each of criterion's samples."""
    subprocess.run(["cargo", "bench", "--bench", "mmdit", "--", f"tiny/{dtype}/forward$"], cwd=ROOT, check=True, capture_output=True)
    sample = json.loads((ROOT / f"target/criterion/mmdit_tiny/{dtype}_forward/new/sample.json").read_text())
    return [t / n / 1e9 for t, n in zip(sample["times"], sample["iters"])]


def forward_torch():
    lines = [json.loads(line) for line in python("forward.py", MODEL, 30)]
    return {(line["dtype"], line["mode"]): line["seconds"] for line in lines}


class Row:
    """Times of one piece of work, by who did it."""

    def __init__(self, name):
        self.name, self.times = name, {"engine": [], "eager": [], "compiled": []}

    def __str__(self):
        show = lambda x: f"{statistics.median(x):.3g} s ({min(x):.3g} to {max(x):.3g})" if x else "not measured"
        ours, *theirs = self.times.values()
        ratios = [f"{statistics.median(x) / statistics.median(ours):.2f}x" if x else "" for x in theirs]
        return f"| {self.name} | {' | '.join(map(show, self.times.values()))} | {' | '.join(ratios)} |"


def cpu():
    return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    forward = {dtype: Row(f"forward of {MODEL}, 32 samples, {dtype}") for dtype in ("f32", "bf16")}
    sample = {n: Row(f"sample {len(PROMPTS)} images of 64x64, 28 steps, guidance 4.5, {n} T5 tokens, f32") for n in (16, 256)}
    epoch = {phase: Row(f"RAM epoch ({CONFIG}), f32: {phase}") for phase in [*PHASES, "total"]}
    for _ in range(rounds):
        for dtype, row in forward.items():
            row.times["engine"] += forward_engine(dtype)
        for (dtype, mode), seconds in forward_torch().items():
            forward[dtype].times[mode] += seconds
        for length, row in sample.items():
            row.times["engine"] += [sample_engine(length) for _ in range(2)]
            for mode in ("eager", "compiled"):
                row.times[mode] += sample_torch(mode, length)
        for who in ("engine", "eager", "compiled"):
            for seconds in epoch_engine(3) if who == "engine" else epoch_torch(who, 4):
                for phase in PHASES:
                    epoch[phase].times[who].append(seconds[phase])
                epoch["total"].times[who].append(sum(seconds[phase] for phase in PHASES))
    import torch, diffusers

    print(f"# {datetime.date.today()}, {os.cpu_count()} cores {cpu()}, {platform.system()}\n")
    print(f"`python benches/baselines/compare.py {rounds}`; PyTorch {torch.__version__}, diffusers {diffusers.__version__}, all cores.")
    print("PyTorch's threads spin between operators (OMP_WAIT_POLICY=ACTIVE), which is its fastest here.")
    print(f"Load average at the end {os.getloadavg()[0]:.1f}. Median (range); ratios are PyTorch's median over ours.\n")
    print("| work | engine | PyTorch eager | PyTorch compiled | over eager | over compiled |\n|---|---|---|---|---|---|")
    for row in [*forward.values(), *sample.values(), *epoch.values()]:
        print(row)


if __name__ == "__main__":
    main()
