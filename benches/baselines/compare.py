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
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return out.stdout.splitlines()


def sample_engine(length):
    with tempfile.TemporaryDirectory() as out:
        args = [ENGINE, "sample", "--model", MODEL, "--steps", "28", "--guidance", "4.5", "--out", out]
        args += ["--max-sequence-length", str(length), "--prompt", *PROMPTS]
        start = time.perf_counter()
        subprocess.run(args, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start


def sample_torch(length):
    lines = python("sample.py", MODEL, 28, 4.5, length, 3, *PROMPTS)
    return [float(line) for line in lines][1:]


def epoch_engine(epochs):
    with tempfile.TemporaryDirectory() as out:
        args = [ENGINE, "train", "--config", CONFIG, "--output-dir", out, "--set", f"num_epochs={epochs}"]
        args += ["--set", "eval.every=0", "--set", "eval.num_prompts=1"]
        subprocess.run(args, cwd=ROOT, check=True, capture_output=True)
        lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
        return [line["seconds"] for line in lines if "seconds" in line][1:]


def epoch_torch(epochs):
    return [json.loads(line) for line in python("ram_epoch.py", CONFIG, epochs)][1:]


def row(name, ours, theirs, unit="s"):
    show = lambda x: f"{statistics.median(x):.3g} {unit} ({min(x):.3g} to {max(x):.3g})"
    ratio = statistics.median(theirs) / statistics.median(ours)
    return f"| {name} | {show(ours)} | {show(theirs)} | {ratio:.2f}x |"


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    samples = {16: ([], []), 256: ([], [])}
    epochs = ([], [])
    for _ in range(rounds):
        for length, (ours, theirs) in samples.items():
            ours += [sample_engine(length) for _ in range(2)]
            theirs += sample_torch(length)
        epochs[0].extend(epoch_engine(3))
        epochs[1].extend(epoch_torch(3))
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    import torch, diffusers

    print(f"# {datetime.date.today()}, {os.cpu_count()} cores {cpu}, {platform.system()}\n")
    print(f"`python benches/baselines/compare.py {rounds}`; PyTorch {torch.__version__}, diffusers {diffusers.__version__}, f32, all cores.")
    print("PyTorch's threads spin between operators (OMP_WAIT_POLICY=ACTIVE), which is its fastest here.")
    print(f"Load average at the end {os.getloadavg()[0]:.1f}. Median (range); the ratio is PyTorch's median over ours.\n")
    print("| work | engine | PyTorch | ratio |\n|---|---|---|---|")
    for length, (ours, theirs) in samples.items():
        print(row(f"sample {len(PROMPTS)} images of 64x64, 28 steps, guidance 4.5, {length} T5 tokens", ours, theirs))
    for phase in PHASES:
        print(row(f"RAM epoch ({CONFIG}): {phase}", *([e[phase] for e in side] for side in epochs)))
    print(row("RAM epoch: total", *([sum(e[p] for p in PHASES) for e in side] for side in epochs)))


if __name__ == "__main__":
    main()
