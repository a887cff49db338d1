"""Runs the (program, input, output) triples of ZLUDA's `ptx/src/test/spirv_run` through `ptxvm run`.

    python3 zluda.py PTXVM FOLDER

FOLDER is a checkout's `ptx/src/test/spirv_run` (github.com/vosen/ZLUDA). Prints what does not pass and the count.
"""

import math
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f16": "e", "f32": "f", "f64": "d"}


class Typed:
    """A number with the type that its text names, if it names one."""

    def __init__(self, value, kind):
        self.value, self.kind = value, kind


def bits(code, value):
    return struct.unpack("<" + code, struct.pack("<" + code.replace("e", "H").replace("f", "I"), value))[0]


def number(text):
    t = text.strip()
    if m := re.fullmatch(r"-(.*)", t, re.S):
        n = number(m[1])
        return Typed(-n.value, n.kind)
    named = {"MAX": lambda k: 2 ** (int(k[1:]) - (k[0] == "i")) - 1, "MIN": lambda k: -(2 ** (int(k[1:]) - 1)) if k[0] == "i" else 0}
    if m := re.fullmatch(r"([ui]\d+)::(max|min)_value\(\)", t) or re.fullmatch(r"([ui]\d+)::(MAX|MIN)", t):
        return Typed(named[m[2].upper()](m[1]), m[1])
    if m := re.fullmatch(r"(?:half::)?(f\d+)::(NAN|INFINITY|NEG_INFINITY)", t):
        return Typed({"NAN": math.nan, "INFINITY": math.inf, "NEG_INFINITY": -math.inf}[m[2]], m[1])
    if m := re.fullmatch(r"(?:half::)?(f\d+)::NAN\.to_bits\(\)", t):
        return Typed({"f16": 0x7E00, "f32": 0x7FC00000}[m[1]], {"f16": "u16", "f32": "u32"}[m[1]])
    if m := re.fullmatch(r"(?:half::)?(f\d+)::from_f(?:32|64)\((.*)\)", t):
        return Typed(number(m[2]).value, m[1])
    if m := re.fullmatch(r"(?:half::)?(f\d+)::from_bits\((.*)\)", t):
        return Typed(bits(CODES[m[1]], number(m[2]).value), m[1])
    if m := re.fullmatch(r"std::f32::consts::PI( / 2f32)?", t):
        value = struct.unpack("f", struct.pack("f", math.pi))[0]
        return Typed(value / 2 if m[1] else value, "f32")
    t = t.replace("_", "")
    if m := re.fullmatch(r"(0x[0-9A-Fa-f]+?|0b[01]+|\d+)([ui]\d+)?", t):
        return Typed(int(m[1], 0), m[2])
    if m := re.fullmatch(r"(\d+(?:\.\d*)?(?:e-?\d+)?)(f32|f64)?", t):
        return Typed(float(m[1]), m[2] or ("float" if "." in m[1] or "e" in m[1] else None))
    raise ValueError(f"{text!r} is not understood")


def array(text):
    items = [number(i) for i in re.split(r",(?![^(]*\))", text) if i.strip()]
    kind = next((i.kind for i in items if i.kind and i.kind != "float"), None)
    if kind is None:
        kind = "f64" if any(i.kind == "float" for i in items) else "i32"
    return kind, b"".join(pack(kind, i.value) for i in items)


def pack(kind, value):
    if kind[0] != "f":
        value = int(value) % 2 ** int(kind[1:])
        return value.to_bytes(int(kind[1:]) // 8, "little")
    return struct.pack("<" + CODES[kind], value)


def same(kind, a, b):
    """Bits; of approximate functions the last ones are left open."""
    if a == b:
        return True
    if kind[0] != "f" or len(a) != len(b):
        return False
    n = len(a) // struct.calcsize(CODES[kind])
    pairs = zip(struct.unpack(f"<{n}{CODES[kind]}", a), struct.unpack(f"<{n}{CODES[kind]}", b))
    return all(x == y or math.isnan(x) and math.isnan(y) or abs(x - y) <= 2**-20 * abs(y) for x, y in pairs)


def triples(folder):
    text = (folder / "mod.rs").read_text()
    text = re.sub(r"//[^\n]*", "", text[text.index("test_ptx!(ld_st,") :])
    text = text[: text.index("\nfn ")] if "\nfn " in text else text
    for m in re.finditer(r"test_ptx(_warp|_with_32)?!\(\s*(?:r#)?(\w+)\s*(?:,\s*(\[.*?\])\s*)?(?:,\s*(\[.*?\])\s*)?\);", text, re.S):
        warp, name, first, second = m[1] == "_warp", m[2], m[3], m[4]
        if first is None:
            continue
        given, wanted = (None, first) if warp else (first, second)
        yield name, warp, given and array(given[1:-1]), array(wanted[1:-1])


def main(ptxvm, folder):
    folder, count, passed = Path(folder), 0, 0
    with tempfile.TemporaryDirectory() as tmp:
        for name, warp, given, (kind, wanted) in triples(folder):
            count += 1
            out, data = Path(tmp, "out"), Path(tmp, "in")
            out.unlink(missing_ok=True)
            size = f"zero:{len(wanted)}"
            args = ["--arg", size, "--arg", "same:0", "--out", f"0={out}"]
            if given:
                data.write_bytes(given[1])
                args = ["--arg", f"in:{data}", "--arg", size, "--out", f"1={out}"]
            block = "64" if warp else "1"
            if given is None and not re.search(r"\.entry[^{]*\.param[^{]*\.param", (folder / f"{name}.ptx").read_text()):
                args = args[:2] + args[4:]
            run = [ptxvm, "run", folder / f"{name}.ptx", "--entry", name, "--block", block, "--shared", "1024", *args]
            r = subprocess.run(run, capture_output=True, text=True)
            got = out.read_bytes() if out.exists() else b""
            if r.returncode == 0 and same(kind, got, wanted):
                passed += 1
            else:
                said = (r.stdout if r.returncode == 1 else r.stderr).strip().split("\n")[0] or f"{got[:16].hex()}, expected {wanted[:16].hex()}"
                if r.returncode == 0:
                    said = f"{got[:16].hex()}, expected {wanted[:16].hex()}"
                print(f"{name}: {said}")
    print(f"{passed} of {count}")
    return 0 if passed == count else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
