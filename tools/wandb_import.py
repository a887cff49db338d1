"""A run's tensorboard/ folder -> Weights & Biases, scalars and pictures, with any version of the package.

    pip install wandb tensorboard
    WANDB_MODE=offline python tools/wandb_import.py outputs/x     # without WANDB_MODE: straight to the server
    wandb sync wandb/offline-run-*

A step is an epoch. What a resumed run has done again comes once. Up to wandb 0.29, `wandb sync --sync-tensorboard
outputs/x/tensorboard` does without this script; later versions took that away.
"""

import argparse
import io
import json
import tomllib
from pathlib import Path

import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def events(folder):
    """The folder's values as {step: {tag: value}}."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    steps = {}
    for tag in board.Tags()["scalars"]:
        for event in board.Scalars(tag):
            steps.setdefault(event.step, {})[tag] = event.value
    for tag in board.Tags()["images"]:
        for event in board.Images(tag):
            picture = Image.open(io.BytesIO(event.encoded_image_string))
            steps.setdefault(event.step, {})[tag] = wandb.Image(picture)
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's output folder")
    parser.add_argument("--project", default="engine")
    parser.add_argument("--name", help="the name the run gets; that of its folder if left out")
    args = parser.parse_args()
    steps = events(args.run / "tensorboard")
    if not steps:
        parser.error(f"{args.run / 'tensorboard'}: no events")
    config = args.run / "config.toml"
    config = tomllib.loads(config.read_text()) if config.exists() else {}
    with wandb.init(project=args.project, name=args.name or args.run.resolve().name, config=config) as run:
        for step, values in sorted(steps.items()):
            run.log(values, step=step)
    print(json.dumps({"epochs": len(steps), "tags": len({tag for values in steps.values() for tag in values})}))


if __name__ == "__main__":
    main()
