"""Pickles as clients and servers of rewards write them: tests/fixtures/http.

everything.pkl: all kinds of plain data as Python's Pickler writes it with `fast` in protocol 3, the bytes that the engine's writer must
give. geneval.pkl, deqa.pkl: answers of the servers of that name.
"""

import io
import pickle
from pathlib import Path

OUT = Path(__file__).parents[2] / "tests/fixtures/http"

EVERYTHING = {
    "ints": [0, 255, 256, 65535, 65536, -1, -256, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1,
             2**39, 2**39 - 1, -(2**39), -(2**39) - 1, 2**63 - 1, -(2**63)],
    "floats": [0.0, -1.5, 1e300, float("inf")],
    "texts": ["", "grüße 🎨", "x" * 300],
    "bytes": [b"", bytes(range(255)), b"\7" * 300],
    "rest": [None, True, False, [], {}],
    "one": [{"key": 1}],
    "many": [i % 7 for i in range(2001)],
}


def fast(value):
    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=3)
    pickler.fast = True
    pickler.dump(value)
    return out.getvalue()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "everything.pkl").write_bytes(fast(EVERYTHING))
    assert pickle.loads(fast(EVERYTHING)) == EVERYTHING
    geneval = {"scores": [0.0, 0.25, 0.5], "rewards": [1.0, 1.0, 1.0], "strict_rewards": [False, True, False],
               "group_rewards": {"counting": [-10.0] * 3}, "group_strict_rewards": {}}
    (OUT / "geneval.pkl").write_bytes(pickle.dumps(geneval))
    (OUT / "deqa.pkl").write_bytes(pickle.dumps({"outputs": [2, 3.5]}))


if __name__ == "__main__":
    main()
