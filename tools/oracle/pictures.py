"""Writes small pictures of every kind and what Pillow and transformers make of them: tests/fixtures/pictures/.

    python tools/oracle/pictures.py

One PNG or JPEG each, and `rgb.safetensors` with `[height, width, 3]` bytes by file name, as transformers' `convert_to_rgb`
gives them for an image that was turned as its EXIF data says.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers.image_transforms import convert_to_rgb

OUT = Path(__file__).resolve().parents[2] / "tests/fixtures/pictures"
SIZE = 24


def png(colour, depth, data, extra=b""):
    """A PNG of SIZE x SIZE with rows of raw bytes; Pillow itself cannot write every kind."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, depth, colour, 0, 0, 0))
    extra = b"".join(chunk(kind, content) for kind, content in extra) if extra else b""
    body = b"".join(b"\0" + row.tobytes() for row in data)
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def saved(image, kind, **keys):
    buffer = io.BytesIO()
    image.save(buffer, kind, **keys)
    return buffer.getvalue()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    bytes_of = lambda *shape: rng.integers(0, 256, shape, dtype=np.uint8)
    words_of = lambda *shape: rng.integers(0, 65536, shape, dtype=np.uint16).astype(">u2")
    smooth = np.add.outer(np.arange(SIZE) * 5, np.arange(SIZE) * 4)[..., None] + np.array([0, 30, 60])
    photo = Image.fromarray((smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8))
    turned = photo.getexif()
    turned[0x0112] = 6
    palette = bytes_of(256, 3)
    files = {
        "rgb.png": png(2, 8, bytes_of(SIZE, SIZE, 3)),
        "rgba.png": png(6, 8, bytes_of(SIZE, SIZE, 4)),
        "grey.png": png(0, 8, bytes_of(SIZE, SIZE)),
        "grey_alpha.png": png(4, 8, bytes_of(SIZE, SIZE, 2)),
        "palette.png": png(3, 8, bytes_of(SIZE, SIZE), [(b"PLTE", palette.tobytes())]),
        "palette_alpha.png": png(3, 8, bytes_of(SIZE, SIZE), [(b"PLTE", palette.tobytes()), (b"tRNS", bytes_of(256).tobytes())]),
        "grey_keyed.png": png(0, 8, bytes_of(SIZE, SIZE) % 16, [(b"tRNS", struct.pack(">H", 5))]),
        "rgb16.png": png(2, 16, words_of(SIZE, SIZE, 3)),
        "rgba16.png": png(6, 16, words_of(SIZE, SIZE, 4)),
        "grey16.png": png(0, 16, words_of(SIZE, SIZE) % 600),
        "photo.jpg": saved(photo, "JPEG", quality=80),
        "photo_444.jpg": saved(photo, "JPEG", quality=95, subsampling=0),
        "photo_grey.jpg": saved(photo.convert("L"), "JPEG", quality=80),
        "photo_progressive.jpg": saved(photo, "JPEG", quality=70, progressive=True),
        "photo_turned.jpg": saved(photo.crop((0, 0, SIZE, SIZE // 2)), "JPEG", quality=90, exif=turned),
    }
    expected = {}
    for name, content in files.items():
        (OUT / name).write_bytes(content)
        image = ImageOps.exif_transpose(Image.open(OUT / name))
        expected[name] = np.ascontiguousarray(convert_to_rgb(image, return_numpy=True))
    save_file(expected, OUT / "rgb.safetensors")


if __name__ == "__main__":
    main()
