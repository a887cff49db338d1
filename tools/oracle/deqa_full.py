"""`engine score --reward deqa` at full size beside PyTorch on the same weights, layer by layer.

    python tools/full_size.py --deqa --out DIR
    cargo build --release
    python tools/oracle/deqa_full.py DIR [target/release/engine]

Prints, against PyTorch in f32 (the weights widened), how far the engine is in f32, and how far the engine and PyTorch are in bf16:
the logits of the five words (relative, of all five together) and the score (1 to 5); also seconds and memory of the engine, by
who holds it: anonymous, or the mapped file. Takes minutes and the weights in the page cache.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image

import owl
from common import ROOT, uniform

SIZES = [(512, 512), (640, 420), (301, 500)]


def draw(folder):
    """Pictures of noise, coarse and fine, as PNG."""
    for i, size in enumerate(SIZES):
        noise = lambda n: Image.fromarray((uniform(f"deqa full {i} {n}", n * n * 3) * 128 + 128).astype(np.uint8).reshape(n, n, 3))
        coarse, fine = (np.asarray(noise(n).resize(size, Image.BICUBIC), float) for n in (7, 150))
        path = folder / f"{i}.png"
        Image.fromarray((0.7 * coarse + 0.3 * fine).round().astype(np.uint8)).save(path)
        yield path


@torch.no_grad()
def by_torch(folder, pictures, dtype):
    """Logits `[pictures, 5]` in f64."""
    spm = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    model, question = owl.Model(owl.Mapped(folder, dtype), owl.FULL), owl.Question(spm)
    pixels = torch.stack([owl.preprocess(Image.open(path), owl.FULL.side) for path in pictures])
    seen = model.abstract(model.see(pixels))
    return model.speak(question.before, seen, question.after, question.words).double()


def by_engine(engine, folder, pictures, dtype):
    """Logits as above, the scores it prints, seconds, and the most anonymous and mapped memory."""
    with tempfile.TemporaryDirectory() as there:
        dump, prompts = Path(there, "dump.json"), Path(there, "prompts.txt")
        prompts.write_text("a picture\n")
        command = [engine, "score", "--reward", "deqa", "--model", folder, "--set", f"reward_models.deqa.dtype={dtype}"]
        command += ["--prompts", prompts, "--dump", dump, "--images", *pictures]
        start, most = time.perf_counter(), {"RssAnon": 0, "RssFile": 0}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            now = {key: int(value.split()[0]) / 1e6 for key, value in (line.split(":") for line in status) if key in most}
            most = {key: max(most[key], now.get(key, 0)) for key in most}
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        assert process.returncode == 0, process.returncode
        lines = [json.loads(line) for line in process.stdout]
        shown = json.loads(dump.read_text())
    logits = [[shown[str(path)][word]["logit"] for word in owl.LEVELS] for path in pictures]
    return torch.tensor(logits, dtype=torch.float64), [5 * line["score"] for line in lines], seconds, most


def main():
    folder = Path(sys.argv[1])
    engine = Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "target/release/engine").resolve()
    with tempfile.TemporaryDirectory() as there:
        pictures = list(draw(Path(there)))
        start = time.perf_counter()
        want = by_torch(folder, pictures, torch.float32)
        scores = owl.score(want)
        print(f"PyTorch f32: {time.perf_counter() - start:.0f} s; scores {scores}, logits {want.tolist()}", flush=True)

        def compare(who, logits, found):
            apart = ((logits - want).norm(dim=1) / want.norm(dim=1)).tolist()
            scores_apart = [abs(a - b) for a, b in zip(found, scores)]
            print(f"{who}: logits {' '.join(f'{a:.2e}' for a in apart)}, scores {' '.join(f'{a:.2e}' for a in scores_apart)}", flush=True)

        for dtype in ("f32", "bf16"):
            logits, found, _, _ = by_engine(engine, folder, pictures, dtype)
            compare(f"engine {dtype}", logits, found)
            _, _, one, _ = by_engine(engine, folder, pictures[:1], dtype)
            _, _, many, most = by_engine(engine, folder, pictures[:1] * 4, dtype)
            memory = f"{most['RssAnon']:.2f} GB anonymous, {most['RssFile']:.2f} GB of the file"
            print(f"engine {dtype}: {one:.1f} s for one picture, {many:.1f} s for four of one size; at most {memory}", flush=True)
        logits = by_torch(folder, pictures, torch.bfloat16)
        compare("PyTorch bf16", logits, owl.score(logits))


if __name__ == "__main__":
    main()
