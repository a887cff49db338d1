"""Small random PP-OCR networks in the layout of tools/convert_ppocr.py, and what PyTorch makes of them.

    python tools/oracle/ocr_networks.py                              # writes tests/fixtures/ocr/tiny
    python tools/oracle/ocr_networks.py --compare models/ppocr-en ONNX_FOLDER    # the converted networks against ONNX Runtime
"""

import argparse
import math

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, randn
from safetensors.torch import load_file, save_file

FOLDER = FIXTURES / "ocr" / "tiny"
RELU = [True] * 6 + [False] * 9
DETECTOR = [(3, 1), (3, 2), (3, 1), (5, 2), (5, 1), (5, 1), (3, 2), (3, 1), (3, 1), (3, 1), (3, 1), (3, 1), (5, 2), (5, 1), (5, 1)]
LEVELS = (2, 5, 11)
RECOGNISER = [(3, 1, 1)] * 3 + [(3, 2, 1), (3, 1, 1), (3, 1, 2)] + [(5, 1, 1)] * 4 + [(5, 2, 1), (5, 1, 1), (5, 2, 1), (5, 1, 1)]


def conv(w, name, x, stride=1, groups=1):
    weight = w[f"{name}.weight"]
    weight = weight.reshape(*weight.shape, 1, 1) if weight.dim() == 2 else weight
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return F.conv2d(x, weight, w.get(f"{name}.bias"), stride, padding, groups=groups)


def gates(w, name, x, slope, residual):
    hidden = F.relu(conv(w, f"{name}.squeeze", x.mean((2, 3), keepdim=True)))
    gate = (conv(w, f"{name}.excite", hidden) * slope + 0.5).clamp(0, 1)
    return x + x * gate if residual else x * gate


def detect(w, x):
    x = F.hardswish(conv(w, "stem", x, 2))
    levels = []
    for i, (kernel, stride) in enumerate(DETECTOR):
        name, act = f"blocks.{i}", F.relu if RELU[i] else F.hardswish
        y = act(conv(w, f"{name}.expand", x))
        y = act(conv(w, f"{name}.depthwise", y, stride, y.shape[1]))
        y = conv(w, f"{name}.project", y)
        x = x + y if stride == 1 and x.shape == y.shape else y
        if i in LEVELS:
            levels.append(x)
    levels.append(F.hardswish(conv(w, "last", x)))
    coarser, smooth = None, {}
    for i in (3, 2, 1, 0):
        y = gates(w, f"lateral.{i}", conv(w, f"lateral.{i}.conv", levels[i]), 0.2, True)
        coarser = y if coarser is None else y + F.interpolate(coarser, scale_factor=2)
        smooth[i] = gates(w, f"smooth.{i}", conv(w, f"smooth.{i}.conv", coarser), 0.2, True)
    x = torch.cat([F.interpolate(smooth[i], scale_factor=2**i) for i in (3, 2, 1, 0)], 1)
    x = F.relu(conv(w, "head.conv", x))
    for i, act in ((0, F.relu), (1, torch.sigmoid)):
        weight, bias = w[f"head.up.{i}.weight"], w[f"head.up.{i}.bias"]
        out = weight.shape[0] // 4
        # Rows (y, x, out) to the [in, out, y, x] of a transposed convolution.
        weight = weight.reshape(2, 2, out, -1).permute(3, 2, 0, 1)
        x = act(F.conv_transpose2d(x, weight, bias[:out], 2))
    return x


def norm(w, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def recognise(w, x, heads=8):
    x = conv(w, "stem", x, 2)
    for i, (kernel, down, across) in enumerate(RECOGNISER):
        for part, stride, groups in (("depthwise", (down, across), x.shape[1]), ("point", 1, 1)):
            name = f"blocks.{i}.{part}"
            x = F.hardswish(conv(w, name, x, stride, groups)) * w[f"{name}.scale"] + w[f"{name}.shift"]
            if part == "depthwise" and f"blocks.{i}.squeeze.weight" in w:
                x = gates(w, f"blocks.{i}", x, 1 / 6, False)
    pooled = F.avg_pool2d(x, (3, 2))
    x = F.silu(conv(w, "neck.widen", F.silu(conv(w, "neck.reduce", pooled))))
    b, width, height, steps = x.shape
    x = x.flatten(2).transpose(1, 2)
    for i in range(2):
        name = f"neck.blocks.{i}"
        qkv = linear(w, f"{name}.qkv", norm(w, f"{name}.norm1", x, 1e-5)).reshape(b, -1, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = ((q * (width // heads) ** -0.5) @ k.transpose(2, 3)).softmax(-1) @ v
        x = x + linear(w, f"{name}.out", y.transpose(1, 2).reshape(b, -1, width))
        x = x + linear(w, f"{name}.fc2", F.silu(linear(w, f"{name}.fc1", norm(w, f"{name}.norm2", x, 1e-5))))
    x = norm(w, "neck.norm", x, 1e-6).transpose(1, 2).reshape(b, width, height, steps)
    x = F.silu(conv(w, "neck.restore", x))
    x = F.silu(conv(w, "neck.narrow", F.silu(conv(w, "neck.merge", torch.cat([pooled, x], 1)))))
    return linear(w, "head", x.squeeze(2).transpose(1, 2))


class Made:
    """Random layers by name, which keep numbers near 1."""

    def __init__(self, name):
        self.g, self.w = generator("ocr:" + name), {}

    def conv(self, name, *shape, bias=True, gain=1.4):
        fan = math.prod(shape[1:])
        self.w[f"{name}.weight"] = randn(self.g, *shape, std=gain / math.sqrt(fan))
        if bias:
            self.w[f"{name}.bias"] = randn(self.g, shape[0], std=0.2)

    def norm(self, name, width):
        self.w[f"{name}.weight"] = randn(self.g, width, std=0.3, mean=1.0)
        self.w[f"{name}.bias"] = randn(self.g, width, std=0.2)

    def gates(self, name, channels, inner):
        self.conv(f"{name}.squeeze", inner, channels)
        self.conv(f"{name}.excite", channels, inner, gain=2)


def tiny_detector():
    made = Made("det")
    outputs = [4, 6, 6, 7, 7, 7, 9, 9, 9, 9, 10, 10, 12, 12, 12]
    made.conv("stem", 4, 3, 3, 3)
    before = 4
    for i, ((kernel, _), out) in enumerate(zip(DETECTOR, outputs)):
        inner = 8 + 3 * (i % 5)
        made.conv(f"blocks.{i}.expand", inner, before)
        made.conv(f"blocks.{i}.depthwise", inner, 1, kernel, kernel)
        made.conv(f"blocks.{i}.project", out, inner, gain=0.8)
        before = out
    made.conv("last", 20, before)
    for i, channels in enumerate([6, 7, 10, 20]):
        made.conv(f"lateral.{i}.conv", 16, channels, bias=False)
        made.gates(f"lateral.{i}", 16, 4)
        made.conv(f"smooth.{i}.conv", 5, 16, 3, 3, bias=False)
        made.gates(f"smooth.{i}", 5, 2)
    made.conv("head.conv", 6, 20, 3, 3)
    for i, out in ((0, 6), (1, 1)):
        made.conv(f"head.up.{i}", 4 * out, 6)
        made.w[f"head.up.{i}.bias"] = made.w[f"head.up.{i}.bias"][:out].repeat(4)
    return made.w


def tiny_recogniser(classes):
    made = Made("rec")
    outputs = [6, 8, 8, 10, 10, 12, 12, 12, 12, 12, 18, 18, 18, 20]
    made.conv("stem", 5, 3, 3, 3)
    before = 5
    for i, ((kernel, _, _), out) in enumerate(zip(RECOGNISER, outputs)):
        made.conv(f"blocks.{i}.depthwise", before, 1, kernel, kernel)
        made.conv(f"blocks.{i}.point", out, before)
        for part in ("depthwise", "point"):
            made.w[f"blocks.{i}.{part}.scale"] = randn(made.g, 1, std=0.2, mean=1.3)
            made.w[f"blocks.{i}.{part}.shift"] = randn(made.g, 1, std=0.2)
        if i in (10, 11):
            made.gates(f"blocks.{i}", before, 3)
        before = out
    made.conv("neck.reduce", 6, before, 1, 3)
    made.conv("neck.widen", 16, 6)
    for i in range(2):
        made.norm(f"neck.blocks.{i}.norm1", 16)
        made.norm(f"neck.blocks.{i}.norm2", 16)
        for name, out, into in (("qkv", 48, 16), ("out", 16, 16), ("fc1", 24, 16), ("fc2", 16, 24)):
            made.conv(f"neck.blocks.{i}.{name}", out, into)
    made.norm("neck.norm", 16)
    made.conv("neck.restore", before, 16)
    made.conv("neck.merge", 6, 2 * before, 1, 3)
    made.conv("neck.narrow", 16, 6)
    made.conv("head", classes, 16, gain=3)
    return made.w


def last(x):
    return x.permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compare", nargs=2, metavar=("CONVERTED", "ONNX_FOLDER"))
    args = parser.parse_args()
    g = generator("ocr:pixels")
    if args.compare:
        import numpy as np
        import onnxruntime
        from PIL import Image

        picture = Image.open(FOLDER.parent / "pictures" / "nasa.jpg").convert("RGB")
        for name, model, network, shape in (
            ("det", "en_PP-OCRv3_det_infer.onnx", detect, (1, 3, 320, 256)),
            ("rec", "en_PP-OCRv4_rec.onnx", lambda w, x: recognise(w, x).softmax(-1), (2, 3, 48, 333)),
        ):
            x = np.asarray(picture.resize((shape[3], shape[2])), np.float32).transpose(2, 0, 1) / 127.5 - 1
            x = torch.from_numpy(x).expand(shape).contiguous()
            session = onnxruntime.InferenceSession(f"{args.compare[1]}/{model}")
            want = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
            got = network(load_file(f"{args.compare[0]}/{name}.safetensors"), x)
            print(name, ((got - want).abs().max() / want.abs().max()).item())
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    det, rec = tiny_detector(), tiny_recogniser(40)
    pixels, lines = randn(g, 2, 3, 64, 64), randn(g, 2, 3, 48, 93)
    made = {"pixels": last(pixels), "probabilities": last(detect(det, pixels)), "lines": last(lines)}
    made["logits"] = recognise(rec, lines)
    print({name: (tuple(t.shape), t.std().item()) for name, t in made.items()})
    save_file({k: v.contiguous() for k, v in det.items()}, FOLDER / "det.safetensors")
    save_file({k: v.contiguous() for k, v in rec.items()}, FOLDER / "rec.safetensors")
    (FOLDER / "dict.txt").write_text("".join(f"{c}\n" for c in "0123456789abcdefghijklmnopqrstuvwxyz!?"))
    save_file(made, FOLDER / "io.safetensors")


if __name__ == "__main__":
    main()
