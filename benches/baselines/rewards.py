"""The rewards of benches/rewards.rs by transformers and open_clip: random weights at the true sizes, 512x512 pictures.

    python benches/baselines/rewards.py make DIR                          # weights: 6 GB
    python tools/full_size.py --deqa --out DIR/deqa                       # DeQA-Score's, or a link to them: 16 GB
    python benches/baselines/rewards.py compare DIR [--rounds 3] [--only NAME ...] > benches/results/<date>-rewards.md
    python benches/baselines/rewards.py time DIR NAME f32|bf16 eager|compiled [--runs 3]

`compare` runs the engine and PyTorch in turn, each in a process of its own, and prints a Markdown table; `time` is PyTorch alone, and
prints seconds per image as a line of JSON. Needs open_clip_torch and torchvision.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from compare import ROOT, Row, cpu, python

sys.path.append(str(ROOT / "tools" / "oracle"))
import blip
import owl
from drawn import OPENAI

# Of benches/rewards.rs.
PICTURES, DIFFERENTIATED, DEQA_PICTURES, SIDE = 8, 4, 4, 512
PROMPT = "a photo of two red apples and a green cup on a wooden table, picture"
SIZE = 224
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MODES = ("eager", "compiled")
CASES = [(name, dtype) for name in ("clipscore", "aesthetic", "pickscore", "hpsv2", "imagereward") for dtype in DTYPES]
CASES += [("deqa", "bf16")]
TEXT = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            hidden_act="quick_gelu", projection_dim=768, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
VISION_L = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=SIZE,
                patch_size=14, hidden_act="quick_gelu", projection_dim=768)
VISION_H = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=SIZE,
                patch_size=14, hidden_act="gelu", projection_dim=1024)
VOCABULARY = 30522


def head():
    sizes = (768, 1024, 128, 64, 16, 1)
    layers = [torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
    return {f"layers.{i}.{part}": getattr(layer, part).data
            for i, layer in zip((0, 2, 4, 6, 7), layers) for part in ("weight", "bias")}


def make(folder):
    for name in ("vit_h", "imagereward"):
        folder.joinpath(name).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION_L, projection_dim=768)).save_pretrained(folder / "vit_l")
    torch.save(head(), folder / "head.pth")
    model = open_clip.create_model("ViT-H-14", pretrained=None)
    state = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "vit_h/HPS_v2.1_compressed.pt")
    w = {name: (2 * torch.rand(shape) - 1) * scale + mean for name, shape, scale, mean in blip.tensors(blip.FULL, VOCABULARY + 2)}
    torch.save(w, folder / "imagereward/ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(PROMPT.replace(",", " ,").split())), *map(str, range(10))]
    words += [f"[unused{i}]" for i in range(VOCABULARY - len(words))]
    (folder / "imagereward/vocab.txt").write_text("".join(word + "\n" for word in words))


def normalised(planes):
    return TF.normalize(planes, *OPENAI)


def by_pil(preprocess, size=SIZE):
    """Pictures as 8-bit files come, through `preprocess` one by one."""
    def run(planes):
        pictures = (planes * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return torch.stack([preprocess(Image.fromarray(picture), size) for picture in pictures])
    return run


def bilinear(planes):
    return normalised(TF.resize(planes, SIZE, antialias=True))


def bicubic(planes):
    return normalised(TF.resize(planes, SIZE, InterpolationMode.BICUBIC, antialias=True))


def stretched(planes):
    return normalised(F.interpolate(planes, size=(SIZE, SIZE), mode="bicubic"))


class Reward:
    """What is compiled, `judge`, makes a number per picture of what `forward` or `backward` makes of pictures `[b, 3, h, w]`."""

    def __init__(self, judge, forward, backward=None, pictures=PICTURES):
        self.judge, self.forward, self.backward, self.pictures = judge, forward, backward, pictures

    def compiled(self):
        return Reward(torch.compile(self.judge), self.forward, self.backward, self.pictures)


def cosine(embed, width, forward, backward, dtype):
    text = F.normalize(torch.randn(1, width), dim=-1)
    judge = lambda pixels: (F.normalize(embed(pixels.to(dtype)).float(), dim=-1) * text).sum(-1)
    return Reward(judge, forward, backward)


def of_openai(folder, dtype):
    model = CLIPModel.from_pretrained(folder / "vit_l").to(dtype).eval().requires_grad_(False)
    return lambda pixels: model.get_image_features(pixels).pooler_output


def clipscore(folder, dtype):
    return cosine(of_openai(folder, dtype), 768, bilinear, bilinear, dtype)


def aesthetic(folder, dtype):
    embed, layers = of_openai(folder, dtype), torch.load(folder / "head.pth")

    def judge(pixels):
        x = F.normalize(embed(pixels.to(dtype)).float(), dim=-1)
        for i in blip.HEAD_LAYERS:
            x = F.linear(x, layers[f"layers.{i}.weight"], layers[f"layers.{i}.bias"])
        return x[:, 0]

    return Reward(judge, by_pil(blip.preprocess), stretched)


def pickscore(_, dtype):
    # The engine reads the file of hpsv2; what the weights are does not change the time.
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_H)).to(dtype).eval().requires_grad_(False)
    return cosine(lambda pixels: model(pixels).image_embeds, 1024, by_pil(blip.preprocess), bicubic, dtype)


def hpsv2(folder, dtype):
    model = open_clip.create_model("ViT-H-14", pretrained=None)
    model.load_state_dict(torch.load(folder / "vit_h/HPS_v2.1_compressed.pt")["state_dict"])
    model = model.to(dtype).eval().requires_grad_(False)
    return cosine(model.encode_image, 1024, bicubic, bicubic, dtype)


def imagereward(folder, dtype):
    w = torch.load(folder / "imagereward/ImageReward.pt")
    networks = [network.to(dtype).requires_grad_(False) for network in blip.networks(w, blip.FULL, VOCABULARY + 2)]
    w = {name: value for name, value in w.items() if name.startswith("mlp.")}
    tokenizer = BertTokenizer(vocab=str(folder / "imagereward/vocab.txt"), do_lower_case=True)
    ids = torch.tensor([tokenizer.encode(f"{PROMPT} {i}") for i in range(PICTURES)])
    assert not (ids == tokenizer.unk_token_id).any()
    mask = torch.ones_like(ids)
    judge = lambda pixels: blip.read(w, *networks, pixels.to(dtype), ids, mask)[2]
    return Reward(judge, by_pil(blip.preprocess))


def deqa(folder, dtype):
    # The ids do not change the time; their numbers, one by one, are those of the engine's vocabulary.
    import sentencepiece

    question = owl.Question(sentencepiece.SentencePieceProcessor(model_file=str(folder / "deqa/tokenizer.model")))
    model = owl.Model(owl.Mapped(folder / "deqa", dtype).all(), owl.FULL)

    def judge(pixels):
        seen = model.abstract(model.see(pixels.to(dtype)))
        logits = model.speak(question.before, seen, question.after, question.words)
        return torch.softmax(logits, -1) @ torch.tensor([5.0, 4, 3, 2, 1])

    return Reward(judge, by_pil(owl.preprocess, owl.FULL.side), pictures=DEQA_PICTURES)


REWARDS = {reward.__name__: reward for reward in (clipscore, aesthetic, pickscore, hpsv2, imagereward, deqa)}


def seconds_of(run, runs, pictures):
    """Per picture; the first run, which may compile, does not count."""
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - start) / pictures)
    return seconds


def time_torch(folder, name, dtype, mode, runs):
    torch.manual_seed(1)
    reward = REWARDS[name](folder, DTYPES[dtype])
    if mode == "compiled":
        reward = reward.compiled()
    planes = (torch.randn(reward.pictures, 3, SIDE, SIDE) / 2 + 0.5).clamp(0, 1)

    def forward():
        with torch.inference_mode():
            reward.judge(reward.forward(planes))

    def gradient():
        few = planes[:DIFFERENTIATED].clone().requires_grad_()
        torch.autograd.grad(reward.judge(reward.backward(few)).sum(), few)

    times = {"forward": seconds_of(forward, runs, reward.pictures)}
    if reward.backward:
        times["gradient"] = seconds_of(gradient, runs, DIFFERENTIATED)
    return times


def time_engine(folder, name, dtype, runs):
    command = ["cargo", "bench", "--bench", "rewards", "--", folder, name, dtype, str(runs)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def compare(folder, rounds, runs, only, modes):
    rows = []
    for name, dtype in CASES:
        if only and name not in only:
            continue
        if name == "deqa" and not (folder / "deqa").exists():
            print(f"no {folder / 'deqa'}: not measured", file=sys.stderr)
            continue
        passes = {"forward": Row(f"`{name}`, {dtype}"), "gradient": Row(f"`{name}`, {dtype}, gradient")}
        for _ in range(rounds):
            for who in ("engine", *modes):
                if who == "engine":
                    times = time_engine(folder, name, dtype, runs)
                else:
                    times = json.loads(python("rewards.py", "time", folder, name, dtype, who, "--runs", runs)[-1])
                for key, row in passes.items():
                    row.times[who] += times.get(key, [])
        for row in passes.values():
            if row.times["engine"]:
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    print(f"# {datetime.date.today()}: rewards, {os.cpu_count()} cores {cpu()}, {platform.system()}\n")
    print(f"`python benches/baselines/rewards.py compare DIR --rounds {rounds} --runs {runs}`; PyTorch {torch.__version__}, all cores, in turn.")
    print(f"Seconds an image, {PICTURES} pictures of {SIDE}x{SIDE} at a time ({DEQA_PICTURES} of `deqa`, gradients {DIFFERENTIATED}), "
          "random weights, prompts of CLIP embedded before.")
    print(f"Load average at the end {os.getloadavg()[0]:.1f}. Median (range); ratios are PyTorch's median over ours.\n")
    print("| reward | engine | PyTorch eager | PyTorch compiled | over eager | over compiled |\n|---|---|---|---|---|---|")
    for row in rows:
        print(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "time", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", nargs="*", help="NAME DTYPE MODE of `time`")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=REWARDS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.what == "make":
        make(folder)
    elif args.what == "time":
        print(json.dumps(time_torch(folder, *args.case, args.runs)))
    else:
        compare(folder, args.rounds, args.runs, args.only, args.modes)


if __name__ == "__main__":
    main()
