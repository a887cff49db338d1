"""Writes the same tensors as torch.save does, in both formats and as users wrap them, under tests/fixtures/torch, and in
`expected.safetensors` what each name holds.

`module.pth`, `script.pt` and `malicious*.pth` must be refused; the last would make a file `/tmp/engine_was_here` if they were run.
"""

import collections
import os

import torch
from common import FIXTURES, generator, randn
from safetensors.torch import save_file

FOLDER = FIXTURES / "torch"
FOLDER.mkdir(parents=True, exist_ok=True)
g = generator("torch_files")

base = randn(g, 6, 8)
tensors = {
    "f32": randn(g, 3, 5),
    "f16": randn(g, 4, 3).half(),
    "bf16": randn(g, 4, 3).bfloat16(),
    "f64": randn(g, 2, 2).double(),
    "i64": torch.arange(-3, 4),
    "i32": torch.arange(5, dtype=torch.int32),
    "i16": torch.arange(5, dtype=torch.int16),
    "i8": torch.arange(-2, 3, dtype=torch.int8),
    "u8": torch.arange(250, 255, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "parameter": torch.nn.Parameter(randn(g, 2, 3)),
    # Views of one storage.
    "rows": base[2:4],
    "columns": base[:, 1:3],
    "transposed": base.t(),
    "every_second": base[1::2, ::3],
    "expanded": randn(g, 1, 3).expand(4, 3),
    "thin": base[:, 4:5].t(),
}


def save(name, value, **options):
    torch.save(value, FOLDER / name, **options)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/engine_was_here",)


old = {"_use_new_zipfile_serialization": False}
ordered = collections.OrderedDict(tensors)
ordered._metadata = {"": {"version": 1}}
save("zip.pth", ordered)
save("legacy.pth", ordered, **old)
save("legacy4.pth", ordered, pickle_protocol=4, **old)
wrapped = {f"module.{k}": v for k, v in tensors.items()}
save("nested.pth", {"epoch": 3, "note": "a", "meta": {"seed": [1, Malicious()]}, "state_dict": wrapped})
save("model.pt", {"optimizer": {"state": {0: base}}, "model": tensors})
save("module.pth", torch.nn.Linear(2, 3))
save("module_legacy.pth", {"model": torch.nn.Linear(2, 3)}, **old)
save("malicious.pth", Malicious())
save("malicious_legacy.pth", Malicious(), **old)
save("malicious_weight.pth", {"weight": Malicious(), "bias": tensors["f32"]})
torch.jit.script(torch.nn.Linear(2, 3)).save(FOLDER / "script.pt")

expected = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
save_file(expected, FOLDER / "expected.safetensors")
