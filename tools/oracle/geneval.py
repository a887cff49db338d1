"""What GenEval's detector does before and after its network -> tests/fixtures/geneval/*.

`input.json`: pictures made ready as both generations of mmdetection do it, by OpenCV (opencv-python-headless) and numpy:
`mmcv.imrescale`, `imnormalize` and `impad`; `DetDataPreprocessor`. `objects.*`: `MaskFormerFusionHead.instance_postprocess`
with `rescale=True`, its lines transcribed, over random logits. `colors.json`: the benchmark's colour classifier with
`models/tiny-clip`: `ImageCrops`, open_clip's transform and clip-benchmark's `zero_shot_classifier`.
"""

import json
import zlib

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import AutoTokenizer, CLIPModel

from common import ROOT, case_dir, generator, randn, save_io

STEP = 9973  # of the floats, one in so many is kept
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def picture(height, width):
    i = np.arange(height * width * 3, dtype=np.uint64)
    return ((i * i * np.uint64(31) >> np.uint64(3)) ^ i).astype(np.uint8).reshape(height, width, 3)


def sampled(x):
    return [float(v) for v in np.asarray(x, dtype=np.float32).reshape(-1)[::STEP]]


def fitting(h, w):
    scale = min(1333 / max(h, w), 800 / min(h, w))
    return int(h * float(scale) + 0.5), int(w * float(scale) + 0.5)


def inputs(d):
    out = {"step": STEP, "resized": [], "ready": []}
    sizes = [((512, 512), (800, 800)), ((1024, 1024), (800, 800)), ((1600, 1600), (800, 800)), ((37, 61), (485, 800)),
             ((591, 590), (801, 800)), ((5, 3), (1333, 800)), ((1, 1), (8, 8)), ((100, 50), (33, 21)), ((64, 64), (64, 64))]
    for (h, w), (height, width) in sizes:
        bytes_ = cv2.resize(picture(h, w), (width, height), interpolation=cv2.INTER_LINEAR)
        floats = cv2.resize(picture(h, w).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        out["resized"].append({"from": [h, w], "to": [height, width], "crc32": zlib.crc32(bytes_.tobytes()), "floats": sampled(floats)})
    for h, w in [(512, 512), (37, 61), (90, 40), (11, 300)]:
        size = fitting(h, w)
        shape = [-(-n // 32) * 32 for n in size]
        # mmdet 2.x: the pipeline Resize, Normalize(to_rgb), Pad of GenEval's config pads before it normalises.
        two = cv2.resize(picture(h, w), size[::-1], interpolation=cv2.INTER_LINEAR)
        padded = np.full((*shape, 3), 128, np.uint8)
        padded[: size[0], : size[1]] = two
        padded = padded.astype(np.float32)
        cv2.subtract(padded, np.float64(MEAN.reshape(1, -1)), padded)
        cv2.multiply(padded, 1 / np.float64(STD.reshape(1, -1)), padded)
        # mmdet 3.x: floats are resized, normalised in torch, and padded with zeros.
        three = cv2.resize(picture(h, w).astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
        normed = (torch.from_numpy(three).permute(2, 0, 1) - torch.tensor(MEAN, dtype=torch.float32).view(3, 1, 1)) / \
            torch.tensor(STD, dtype=torch.float32).view(3, 1, 1)
        normed = F.pad(normed, (0, shape[1] - size[1], 0, shape[0] - size[0]))
        out["ready"].append({"from": [h, w], "size": size, "shape": shape, "mmdet2": sampled(padded.transpose(2, 0, 1)),
                             "mmdet3": sampled(normed.numpy())})
    (d / "input.json").write_text(json.dumps(out, separators=(",", ":")))


def mask2bbox(masks):
    boxes = masks.new_zeros((masks.shape[0], 4), dtype=torch.float32)
    x_any, y_any = torch.any(masks, dim=1), torch.any(masks, dim=2)
    for i in range(masks.shape[0]):
        x, y = torch.where(x_any[i, :])[0], torch.where(y_any[i, :])[0]
        if len(x) > 0 and len(y) > 0:
            boxes[i, :] = boxes.new_tensor([x[0], y[0], x[-1] + 1, y[-1] + 1])
    return boxes


def objects(d):
    cases, io = [], {}
    for name, queries, classes, quarter, padded, resized, original in [
            ("all", 12, 4, (8, 12), (32, 48), (27, 45), (19, 31)), ("top", 60, 5, (4, 4), (16, 16), (16, 13), (40, 33))]:
        g = generator("geneval/" + name)
        cls, masks = randn(g, queries, classes + 1, std=2.0), randn(g, queries, *quarter, std=3.0, mean=-1.0)
        masks[1] = -masks[1].abs()  # an empty one
        up = F.interpolate(masks[None], size=padded, mode="bilinear", align_corners=False)[0]
        up = up[:, : resized[0], : resized[1]]
        up = F.interpolate(up[:, None], size=original, mode="bilinear", align_corners=False)[:, 0]
        scores = F.softmax(cls, dim=-1)[:, :-1]
        labels = torch.arange(classes).unsqueeze(0).repeat(queries, 1).flatten(0, 1)
        per_image, top = scores.flatten(0, 1).topk(min(100, queries * classes), sorted=True)
        labels, chosen = labels[top], up[torch.div(top, classes, rounding_mode="floor")]
        binary = (chosen > 0).float()
        quality = (chosen.sigmoid() * binary).flatten(1).sum(1) / (binary.flatten(1).sum(1) + 1e-6)
        boxes = mask2bbox(binary.bool())
        cases.append({"name": name, "original": original, "resized": resized, "padded": padded, "objects": [
            {"class": int(labels[i]), "score": float(per_image[i] * quality[i]), "box": [int(v) for v in boxes[i]],
             "pixels": int(binary[i].sum())} for i in range(len(top))]})
        io |= {f"{name}.classes": cls[None], f"{name}.masks": masks.permute(1, 2, 0)[None].contiguous()}
    (d / "objects.json").write_text(json.dumps(cases, separators=(",", ":")))
    save_io(d / "objects.safetensors", io)


COLORS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]


@torch.no_grad()
def colors(d):
    folder = ROOT / "models" / "tiny-clip"
    clip, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    size = clip.config.vision_config.image_size
    openai = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    transform = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size), ToTensor(), Normalize(*openai)])
    height, width = 90, 140
    y, x = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([x * 3, y * 5, x * y // 7], -1).astype(np.uint8))

    def text(sentence):
        ids = tokenizer(sentence, return_tensors="pt", padding="max_length", truncation=True)
        return F.normalize(clip.get_text_features(input_ids=ids.input_ids).pooler_output, dim=-1)

    cases = []
    # Boxes whose crop has a margin of 3 pixels among them, where torchvision and transformers cut otherwise.
    for cls, box in [("circle", (10, 5, 50, 45)), ("square", (20, 10, 20 + 40, 10 + 42)), ("stop sign", (0, 0, 140, 90)),
                     ("triangle", (100, 30, 107, 80))]:
        weights = []
        for c in COLORS:
            mean = torch.cat([text(t) for t in (f"a photo of a {c} {cls}", f"a photo of a {c}-colored {cls}",
                                                 f"a photo of a {c} object")]).mean(0)
            weights.append(mean / mean.norm())
        left, top, right, bottom = box
        mask = ((x - (left + right - 1) / 2) / (right - left)) ** 2 + ((y - (top + bottom - 1) / 2) / (bottom - top)) ** 2 <= 0.25
        mask &= (x >= left) & (x < right) & (y >= top) & (y < bottom)
        alone = Image.composite(image, Image.new("RGB", image.size, color="#999"), Image.fromarray(mask)).crop([float(v) for v in box])
        pixels = transform(alone)[None]
        features = F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        logits = 100 * (features @ torch.stack(weights).T)[0]
        cases.append({"class": cls, "box": box, "logits": logits.tolist(), "color": COLORS[int(logits.argmax())]})
        print(cls, box, cases[-1]["color"], [round(v, 2) for v in logits.tolist()])
    (d / "colors.json").write_text(json.dumps({"size": [height, width], "objects": cases}))


d = case_dir("geneval")
colors(d)
inputs(d)
objects(d)
