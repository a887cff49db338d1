"""What the networks of `blip.py` and `owl.py` are listed with: (name, shape, half width, mean) of tensors whose numbers are drawn evenly, so
as to keep activations near 1."""

import math

# Mean and deviation of OpenAI's pictures.
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def tensor(name, *shape, scale=None, mean=0.0):
    if scale is None:
        scale = 0.2 if len(shape) == 1 else math.sqrt(3 / math.prod(shape[1:]))
    yield name, shape, scale, mean


def linear(name, inputs, outputs):
    """Weight and bias."""
    yield from tensor(name + ".weight", outputs, inputs)
    yield from tensor(name + ".bias", outputs)


def norm(name, width):
    """Weight near 1 and bias."""
    yield from tensor(name + ".weight", width, scale=0.3, mean=1.0)
    yield from tensor(name + ".bias", width)
