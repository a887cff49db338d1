"""PIL bicubic and CLIPImageProcessor, JPEG sizes -> tests/fixtures/preprocess, tests/fixtures/jpeg.json."""

import base64
import io
import json
import zlib

import numpy as np
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from common import FIXTURES, case_dir, generator, quiet, save_io

RESIZE = {  # name -> ((height, width), (height, width) after)
    "down": ((64, 64), (32, 32)),
    "odd": ((37, 53), (19, 24)),
    "up": ((20, 20), (31, 31)),
    "mixed": ((48, 11), (13, 40)),
    "tall_only": ((40, 24), (17, 24)),  # PIL skips the pass whose size does not change
    "edges": ((33, 33), (24, 24)),  # 0/255 only: overshoot must be clamped between the passes too
}
CLIP = {"clip_wide": (50, 70), "clip_tall": (61, 37), "clip_up": (20, 20), "clip_same": (24, 24)}
CLIP_EDGE = 24


def picture(name, h, w):
    g = generator("preprocess/" + name)
    x = torch.randint(0, 256, (h, w, 3), generator=g)
    if name == "edges":
        x = (x > 127) * 255
    return x.to(torch.uint8)


def bicubic(x, size):
    return torch.from_numpy(np.array(Image.fromarray(x.numpy()).resize((size[1], size[0]), Image.BICUBIC)))


def preprocess():
    out, meta = {}, {"resize": {}, "clip": {}}
    for name, (src, dst) in RESIZE.items():
        out[f"{name}.image"] = picture(name, *src)
        out[f"{name}.resized"] = bicubic(out[f"{name}.image"], dst)
    processor = CLIPImageProcessorPil(size={"shortest_edge": CLIP_EDGE},
                                      crop_size={"height": CLIP_EDGE, "width": CLIP_EDGE})
    for name, size in CLIP.items():
        x = out[f"{name}.image"] = picture(name, *size)
        y = processor(Image.fromarray(x.numpy()), return_tensors="pt").pixel_values[0]
        out[f"{name}.pixel_values"] = y
        # The same by hand, so that the steps are written down: int() truncates the long edge, // the crop offset.
        h, w = size
        s = min(h, w)
        rh, rw = int(CLIP_EDGE * h / s), int(CLIP_EDGE * w / s)
        top, left = (rh - CLIP_EDGE) // 2, (rw - CLIP_EDGE) // 2
        z = bicubic(x, (rh, rw))[top:top + CLIP_EDGE, left:left + CLIP_EDGE]
        z = z.permute(2, 0, 1).double() / 255
        mean, std = (torch.tensor(v).double().reshape(3, 1, 1) for v in (processor.image_mean, processor.image_std))
        assert ((z - mean) / std - y).abs().max() < 1e-6, name
    save_io(case_dir("preprocess"), out)
    print("mean", processor.image_mean, "std", processor.image_std)
    return out


def synthetic(spec):
    h, w = spec["height"], spec["width"]
    y, x = np.mgrid[0:h, 0:w]
    if spec["kind"] == "constant":
        planes = [np.full((h, w), v) for v in spec["rgb"]]
    elif spec["kind"] == "gradient":
        planes = [4 * x, 4 * y, np.full((h, w), 128)]
    elif spec["kind"] == "quadratic":
        planes = [x * x + y, x * y // 3, x + y * y // 2]
    elif spec["kind"] == "lcg":
        values, state = np.empty(h * w * 3, np.int64), spec["seed"]
        for i in range(values.size):
            state = (state * 1664525 + 1013904223) % 2**32
            values[i] = state >> 24
        return values.reshape(h, w, 3).astype(np.uint8)
    return (np.stack(planes, -1) & 255).astype(np.uint8)


FORMULAS = {
    "constant": "r, g, b = rgb",
    "gradient": "r = 4x & 255, g = 4y & 255, b = 128",
    "quadratic": "r = (x*x + y) & 255, g = (x*y / 3) & 255, b = (x + y*y / 2) & 255, integer division",
    "lcg": "for each byte in order row, column, r g b: state = (state * 1664525 + 1013904223) mod 2^32, byte = state "
           ">> 24, starting from state = seed",
    "stored": "tensor in preprocess/io.safetensors, u8 [height, width, 3]",
}


def jpeg(images):
    specs = []
    for h, w in ((64, 64), (23, 17), (512, 512)):
        size = dict(height=h, width=w)
        specs += [dict(kind="constant", rgb=[127, 127, 127], **size), dict(kind="constant", rgb=[255, 0, 31], **size),
                  dict(kind="gradient", **size), dict(kind="quadratic", **size), dict(kind="lcg", seed=1, **size),
                  dict(kind="lcg", seed=2026, **size)]
    specs += [dict(kind="constant", rgb=[3, 200, 90], height=1, width=1),
              dict(kind="lcg", seed=7, height=9, width=31)]
    specs += [dict(kind="stored", tensor=f"{n}.image") for n in ("odd", "edges", "clip_wide", "mixed")]
    rows = []
    for s in specs:
        x = images[s["tensor"]].numpy() if s["kind"] == "stored" else synthetic(s)
        for quality in (95, 75):
            b = io.BytesIO()
            Image.fromarray(x).save(b, "JPEG", quality=quality)
            row = dict(s, quality=quality, bytes=len(b.getvalue()), crc32=zlib.crc32(b.getvalue()))
            if len(b.getvalue()) < 1100 and quality == 95:
                row["base64"] = base64.b64encode(b.getvalue()).decode()
            rows.append(row)
    want = {("constant", 512): 4722, ("gradient", 64): 1361}
    for (kind, h), n in want.items():
        row = next(r for r in rows if (r["kind"], r.get("height"), r["quality"]) == (kind, h, 95))
        assert row["bytes"] == n, row
    (FIXTURES / "jpeg.json").write_text(
        '{"formulas": ' + json.dumps(FORMULAS, indent=1) + ',\n"cases": [\n'
        + ",\n".join(json.dumps(r) for r in rows) + "\n]}\n")
    for r in rows:
        print({k: v for k, v in r.items() if k != "base64"})


if __name__ == "__main__":
    quiet()
    jpeg(preprocess())
