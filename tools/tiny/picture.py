"""Draws a run's first and last sample grids beside each other, prompt by prompt.

    python tools/tiny/picture.py outputs/ram_geneval --out picture.png

A row is a prompt with its images, the same noise before (left) and after (right). Frames are green where `score.py` finds
exactly what the prompt asks for.
"""

import argparse
import json
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import score

SIZE, GAP, LABEL = 64, 5, 16
RIGHT, WRONG = (30, 160, 70), (215, 215, 215)
# Between and around the images of a sample grid (src/io/image.rs).
BORDER = 2


def tiles(path, count):
    """The first `count` images of a sample grid, in reading order."""
    grid = Image.open(path).convert("RGB")
    step = SIZE + BORDER
    columns = grid.width // step
    corners = [(i % columns * step + BORDER, i // columns * step + BORDER) for i in range(count)]
    return [grid.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=Path, default=Path("configs/tiny/prompts_test.jsonl"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = tomllib.loads((args.run / "config.toml").read_text())
    each, shown = config["eval"]["num_images_per_prompt"], config["eval"]["grid"]
    records = [json.loads(line) for line in args.prompts.read_text().splitlines()]
    grids = sorted((args.run / "samples").glob("*.png"))
    before, after = (tiles(path, shown) for path in (grids[0], grids[-1]))
    rows, side = shown // each, each * (SIZE + GAP)
    picture = Image.new("RGB", (2 * side + 4 * GAP, rows * (SIZE + LABEL + GAP) + LABEL), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((GAP, 1), "before", fill="black")
    pen.text((side + 4 * GAP, 1), "after", fill="black")
    for row in range(rows):
        y = LABEL + row * (SIZE + LABEL + GAP)
        pen.text((GAP, y + 2), records[row]["prompt"], fill="black")
        for column in range(each):
            x = column * (SIZE + GAP)
            for offset, images in ((GAP, before), (side + 4 * GAP, after)):
                image = images[row * each + column]
                strict, _ = score.geneval(score.detect(np.asarray(image)), records[row])
                left, top = offset + x, y + LABEL
                pen.rectangle((left - 2, top - 2, left + SIZE + 1, top + SIZE + 1), fill=RIGHT if strict else WRONG)
                picture.paste(image, (left, top))
    picture.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
