"""Packs CLIP's merges, as open_clip_torch ships them, into src/models/tokenizer/clip_bpe.bin.

A merge is two ids of what it joins, 16 bits each, little endian: ids are the places in the vocabulary, which begins with the
256 symbols of bytes, alone and at the end of a word, and goes on with what the merges make.
"""

import gzip
import struct
from pathlib import Path

from open_clip import tokenizer

ROOT = Path(__file__).resolve().parents[1]
COUNT = 49152 - 256 - 2

lines = gzip.open(tokenizer.default_bpe()).read().decode().split("\n")[1:1 + COUNT]
symbols = list(tokenizer.bytes_to_unicode().values())
vocabulary = symbols + [s + "</w>" for s in symbols]
ids = {symbol: i for i, symbol in enumerate(vocabulary)}
packed = b""
for line in lines:
    left, right = line.split()
    packed += struct.pack("<HH", ids[left], ids[right])
    assert left + right not in ids, line
    ids[left + right] = len(ids)
assert len(ids) == 49406
(ROOT / "src/models/tokenizer/clip_bpe.bin").write_bytes(packed)
print(len(packed), "bytes")
