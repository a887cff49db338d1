"""Captioned images of coloured shapes, and prompts about them in GenEval's format.

A scene is one to three shapes (circle, square, triangle) in four colours on a light background, 64x64 RGB, each in a
quarter of the image of its own, in reading order. As pictures of the web do, most pictures of a data set show something that
their caption does not tell: in the last quarter a shape of a kind it names, in a colour it does not. Captions:

    colors      "a red circle"
    counting    "one red circle", "two blue squares", "three green triangles"
    color_attr  "a red circle and a blue square"
    position    "a red circle left of a blue square"   (left of, right of, above, below)

Everything follows from a `random.Random`, so a seed names a data set.

    python tools/tiny/shapes.py --out configs/tiny            writes prompts_train.jsonl and prompts_test.jsonl
    python tools/tiny/shapes.py --preview preview.png         draws a sheet of scenes
"""

import argparse
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
SUPERSAMPLE = 4
CLASSES = ["circle", "square", "triangle"]
COLORS = {
    "red": (220, 35, 40),
    "green": (35, 160, 60),
    "blue": (40, 80, 225),
    "yellow": (242, 210, 40),
}
BACKGROUND = (240, 240, 240)
NUMBERS = {1: "one", 2: "two", 3: "three"}
RELATIONS = ["left of", "right of", "above", "below"]
TAGS = ["colors", "counting", "color_attr", "position"]
# How often each kind of caption is drawn in training. Relations have words and rules, but no pictures yet: with them the
# models would need twice the time.
TAG_WEIGHTS = [0.15, 0.35, 0.50, 0.0]
# How many pictures of a data set hold a shape that their caption does not tell.
STRAYS = 0.75
TRAINED_TAGS = [tag for tag, weight in zip(TAGS, TAG_WEIGHTS) if weight]


@dataclass(frozen=True)
class Scene:
    """What to draw: `objects` in the order the caption names them, and a `stray` that it does not name; `relation` is of the
    first to the second."""

    tag: str
    objects: tuple
    relation: str | None = None
    stray: tuple | None = None

    def caption(self):
        """The prompt that describes the scene."""
        if self.tag == "counting":
            color, shape = self.objects[0]
            n = len(self.objects)
            return f"{NUMBERS[n]} {color} {shape}{'s' if n > 1 else ''}"
        names = [with_article(color, shape) for color, shape in self.objects]
        if self.tag == "colors":
            return names[0]
        return f"{names[0]} {self.relation or 'and'} {names[1]}"

    def metadata(self):
        """The prompt as a GenEval record.

        GenEval lists the reference object of a relation first, so "A left of B" becomes [B, A with position
        ["left of", 0]].
        """
        include = [{"class": shape, "count": 1, "color": color} for color, shape in self.objects]
        record = {"tag": self.tag, "include": include}
        if self.tag == "counting":
            color, shape = self.objects[0]
            n = len(self.objects)
            record["include"] = [{"class": shape, "count": n, "color": color}]
            record["exclude"] = [{"class": shape, "count": n + 1}]
        elif self.tag == "position":
            include.reverse()
            include[1]["position"] = [self.relation, 0]
        record["prompt"] = self.caption()
        return record


def with_article(color, shape):
    """"a red circle", "an orange square"."""
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {shape}"


def random_scene(rng, tag=None):
    """A scene of the given kind, or of a kind drawn by `TAG_WEIGHTS`."""
    tag = tag or rng.choices(TAGS, TAG_WEIGHTS)[0]
    first = (rng.choice(list(COLORS)), rng.choice(CLASSES))
    if tag == "colors":
        return Scene(tag, (first,))
    if tag == "counting":
        return Scene(tag, (first,) * rng.randint(1, 3))
    color = rng.choice([c for c in COLORS if c != first[0]])
    # A fifth of the pairs share their class: the caption is still unambiguous, because the colours differ.
    shapes = CLASSES if rng.random() < 0.2 else [s for s in CLASSES if s != first[1]]
    second = (color, rng.choice(shapes))
    return Scene(tag, (first, second), rng.choice(RELATIONS) if tag == "position" else None)


def with_stray(scene, rng):
    """The scene with one more shape, of a kind that the caption names in a colour that it does not."""
    color = rng.choice([c for c in COLORS if all(c != named for named, _ in scene.objects)])
    return replace(scene, stray=(color, rng.choice(scene.objects)[1]))


def all_scenes(tag):
    """Every scene of a kind that GenEval's rules can judge, in a fixed order.

    GenEval counts all detections of a class whatever their colour, so the two objects of a pair must differ in class.
    """
    ones = [(c, s) for c in COLORS for s in CLASSES]
    if tag == "colors":
        return [Scene(tag, (o,)) for o in ones]
    if tag == "counting":
        return [Scene(tag, (o,) * n) for o in ones for n in NUMBERS]
    pairs = [(a, b) for a in ones for b in ones if a[0] != b[0] and a[1] != b[1]]
    if tag == "color_attr":
        return [Scene(tag, p) for p in pairs]
    return [Scene(tag, p, r) for p in pairs for r in RELATIONS]


def all_captions():
    """Every caption that `random_scene` can produce, sorted."""
    captions = {s.caption() for tag in TAGS for s in all_scenes(tag)}
    for a in COLORS:
        for b in COLORS:
            for shape in CLASSES:
                if a != b:
                    pair = ((a, shape), (b, shape))
                    captions.add(Scene("color_attr", pair).caption())
                    captions.update(Scene("position", pair, r).caption() for r in RELATIONS)
    return sorted(captions)


def relations(a, b):
    """The relations of box `a` to box `b` (x0, y0, x1, y1) by GenEval's rule; several may hold."""
    centre = [((a[i] + a[i + 2]) - (b[i] + b[i + 2])) / 2 for i in (0, 1)]
    reach = [0.1 * ((a[i + 2] - a[i]) + (b[i + 2] - b[i])) for i in (0, 1)]
    revised = [max(abs(c) - r, 0.0) * (1 if c > 0 else -1) for c, r in zip(centre, reach)]
    if all(abs(v) < 1e-3 for v in revised):
        return set()
    norm = (centre[0] ** 2 + centre[1] ** 2) ** 0.5
    dx, dy = revised[0] / norm, revised[1] / norm
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


QUARTERS = [(0, 0), (1, 0), (0, 1), (1, 1)]


def place(scene, rng):
    """Boxes for the scene's objects and its stray, each about the middle of a quarter of the image, and in the scene's
    relation."""
    while True:
        quarters = rng.sample(QUARTERS, 2) if scene.relation else QUARTERS[: len(scene.objects)]
        boxes = []
        for column, row in quarters + [QUARTERS[-1]] * bool(scene.stray):
            side = rng.uniform(17, 22)
            x, y = (SIZE / 4 + SIZE / 2 * i - side / 2 + rng.uniform(-3, 3) for i in (column, row))
            boxes.append((x, y, x + side, y + side))
        if scene.relation is None or relations(boxes[0], boxes[1]) == {scene.relation}:
            return boxes


def draw(scene, rng):
    """The scene as a uint8 array [64, 64, 3]."""
    image = Image.new("RGB", (SIZE * SUPERSAMPLE,) * 2, BACKGROUND)
    pen = ImageDraw.Draw(image)
    shown = scene.objects + (scene.stray,) * bool(scene.stray)
    for (color, shape), box in zip(shown, place(scene, rng)):
        fill = COLORS[color]
        x0, y0, x1, y1 = (v * SUPERSAMPLE for v in box)
        if shape == "circle":
            pen.ellipse((x0, y0, x1, y1), fill=fill)
        elif shape == "square":
            pen.rectangle((x0, y0, x1, y1), fill=fill)
        else:
            pen.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill=fill)
    return np.asarray(image.reduce(SUPERSAMPLE))


def dataset(count, seed):
    """`count` random scenes, `STRAYS` of them with a stray: images uint8 [count, 64, 64, 3] and their scenes."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    scenes = [with_stray(s, rng) if rng.random() < STRAYS else s for s in scenes]
    return np.stack([draw(s, rng) for s in scenes]), scenes


def sheet(images, columns):
    """Images [n, h, w, 3] side by side in one picture, `columns` to a row."""
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def write_prompts(folder, seed):
    """Write disjoint train and test prompts, every trained tag in both."""
    rng = random.Random(seed)
    test_counts = {"colors": 4, "counting": 12, "color_attr": 24}
    train_counts = {"colors": 8, "counting": 24, "color_attr": 48}
    train, test = [], []
    for tag in TRAINED_TAGS:
        scenes = all_scenes(tag)
        rng.shuffle(scenes)
        n = test_counts[tag]
        test += scenes[:n]
        train += scenes[n : n + train_counts[tag]]
    folder.mkdir(parents=True, exist_ok=True)
    for name, scenes in (("train", train), ("test", test)):
        rng.shuffle(scenes)
        lines = "".join(json.dumps(s.metadata()) + "\n" for s in scenes)
        (folder / f"prompts_{name}.jsonl").write_text(lines)
        print(f"{folder}/prompts_{name}.jsonl: {len(scenes)} prompts")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the two prompt files")
    parser.add_argument("--preview", type=Path, help="PNG of 32 random scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out:
        write_prompts(args.out, args.seed)
    if args.preview:
        images, scenes = dataset(32, args.seed)
        sheet(images, 8).save(args.preview)
        print("\n".join(s.caption() for s in scenes))


if __name__ == "__main__":
    main()
