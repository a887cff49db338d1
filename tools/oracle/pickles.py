"""Writes the same values with every protocol of Python's pickle: tests/fixtures/pickle/protocol_N.pkl."""

import collections
import pathlib
import pickle

FOLDER = pathlib.Path(__file__).parents[2] / "tests/fixtures/pickle"

values = {
    "plain": [1, -2, 70000, 3.5, True, False, None],
    "text": "é\n€ \\u0041 '\"",
    "bytes": b"\x00\xff\n'",
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "magic": 0x1950A86A20F9469CFC6C,
    "negative": -(1 << 40),
    "huge": 1 << 200,
    "infinite": float("inf"),
    "nested": {"x": {"y": [[]]}},
    "ordered": collections.OrderedDict(b=1, a=2),
    "placeholder": collections.Counter("aab"),
}
values["again"] = values["nested"]
values["itself"] = [values["plain"]]
values["itself"].append(values["itself"])

FOLDER.mkdir(parents=True, exist_ok=True)
for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    (FOLDER / f"protocol_{protocol}.pkl").write_bytes(pickle.dumps(values, protocol))
