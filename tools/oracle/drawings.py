"""Drawings of the tiny models' world, some blurred and noisy, and figures that are none -> tests/fixtures/shapes."""

import json
import math
import random
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from common import FIXTURES

sys.path.insert(0, str(FIXTURES.parents[1] / "tools" / "tiny"))
import shapes  # noqa: E402

FOLDER = FIXTURES / "shapes"
RED = shapes.COLORS["red"]
K = shapes.SUPERSAMPLE


def worn(image, blur, noise, rng):
    """The image blurred by a Gaussian and with Gaussian noise, both by their deviation."""
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur)))
    return np.clip(soft + rng.normal(0, noise, soft.shape), 0, 255).astype(np.uint8)


def polygon(n, turn, pen):
    """A regular polygon of radius 10 pixels."""
    points = [(math.cos(turn + 2 * math.pi * i / n), math.sin(turn + 2 * math.pi * i / n)) for i in range(n)]
    pen.polygon([(K * (32 + 10 * x), K * (32 + 10 * y)) for x, y in points], fill=RED)


FIGURES = {  # name -> how it is drawn on a light ground; none of these is a circle, square or triangle
    "pentagon": lambda pen: polygon(5, -math.pi / 2, pen),
    "diamond": lambda pen: polygon(4, 0, pen),
    "triangle_down": lambda pen: polygon(3, math.pi / 2, pen),
    "tilted_square": lambda pen: polygon(4, math.pi / 4 + 0.26, pen),
    "ring": lambda pen: pen.ellipse((80, 80, 160, 160), outline=RED, width=24),
    "half_disc": lambda pen: pen.pieslice((80, 80, 160, 160), 0, 180, fill=RED),
    "two_that_touch": lambda pen: [pen.ellipse((x, 80, x + 70, 150), fill=RED) for x in (60, 110)],
    "between_circle_and_square": lambda pen: pen.rounded_rectangle((80, 80, 152, 152), 24, fill=RED),
    "two_colours": lambda pen: [pen.pieslice((80, 80, 160, 160), a, a + 180, fill=c)
                                for a, c in ((90, RED), (270, shapes.COLORS["blue"]))],
    "half_outside": lambda pen: pen.ellipse((-40, 80, 40, 160), fill=RED),
    "dot": lambda pen: pen.ellipse((100, 100, 124, 124), fill=RED),
}


def figure(paint, ground=(240, 240, 240)):
    image = Image.new("RGB", (shapes.SIZE * K,) * 2, ground)
    paint(ImageDraw.Draw(image))
    return np.asarray(image.reduce(K).filter(ImageFilter.GaussianBlur(0.8)))


def main():
    rng, noise = random.Random(21), np.random.default_rng(21)
    FOLDER.mkdir(parents=True, exist_ok=True)
    truth = {}

    def save(name, image, objects):
        Image.fromarray(image).save(FOLDER / f"{name}.png", optimize=True)
        truth[name] = objects

    wear = {"clean": (0, 0), "soft": (1, 0), "noisy": (0.8, 6)}
    for kind, (blur, deviation) in wear.items():
        for tag in shapes.TAGS:
            scene = shapes.random_scene(rng, tag)
            image = shapes.draw(scene, rng)
            if blur:
                image = worn(image, blur, deviation, noise)
            save(f"{kind}_{tag}", image, [{"class": s, "color": c} for c, s in scene.objects])
    large = shapes.draw(scene, rng)
    save("large", np.asarray(Image.fromarray(large).resize((200, 200), Image.NEAREST)), truth[f"{kind}_{tag}"])
    for name, paint in FIGURES.items():
        save(name, figure(paint), [])
    save("dark_ground", figure(lambda pen: pen.ellipse((80, 80, 160, 160), fill=RED), (30, 30, 30)), [])
    (FOLDER / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
