#!/usr/bin/env python3
"""Compiles kernels/*.cu to ptx/ with the pinned compiler of kernels/toolchain.txt, which it fetches into .toolkit/.

    tools/kernels.py [OP ...]      compiles what is stale (or the named ops, stale or not)
    tools/kernels.py --check       compiles everything and fails if a byte of ptx/ differs, or the table that --ptxas writes
    tools/kernels.py --ptxas       assembles ptx/ for every chip and writes benches/results/ptxas.md; fails on spills in
                                   hot kernels and on anything that ptxas says of them (C75xx)
    tools/kernels.py --lines DIR   compiles everything with -lineinfo into DIR, for profilers and ptxvm's messages

kernels/OP.cu is compiled for sm_80, kernels/OP.sm_90a.cu for sm_90a. Lines of a source that begin with `// shared` and
`// hot` say how much dynamic shared memory the launcher gives to entries (shell patterns), and which must not spill; every
source has one of the latter:

    // shared linear_forward_* 65536
    // hot linear_*
"""

import argparse
import concurrent.futures
import ctypes
import fnmatch
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS, PTX, TOOLKIT = ROOT / "kernels", ROOT / "ptx", ROOT / ".toolkit"
RESOURCES = ROOT / "benches/results/ptxas.md"
TOOLCHAIN = (KERNELS / "toolchain.txt").read_text(encoding="utf-8").split()
PACKAGES = [line for line in TOOLCHAIN if "==" in line]
OPTIONS = [line for line in TOOLCHAIN if line.startswith("--")]
# Which chips run a file of each target.
CHIPS = {"sm_80": ["sm_80", "sm_86", "sm_89", "sm_90"], "sm_90a": ["sm_90a"]}
# The newest PTX that the drivers we ask for take.
VERSION = (8, 4)


def toolkit():
    """The folder with the compiler, fetched if it is not there."""
    stamp = TOOLKIT / "packages"
    if not stamp.exists() or stamp.read_text(encoding="utf-8").split() != PACKAGES:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(TOOLKIT)]
        subprocess.run([*command, *PACKAGES], check=True)
        stamp.write_text("\n".join(PACKAGES), encoding="utf-8")
    return TOOLKIT / "nvidia"


def jobs():
    """(source, target, result) of every file."""
    for source in sorted(KERNELS.glob("*.cu")):
        op, *target = source.stem.split(".")
        target = target[0] if target else "sm_80"
        yield source, target, PTX / f"{op}.{target}.ptx"


def sources(source):
    """A source and what it includes, sorted by path; build.rs has the same."""
    found, todo = set(), [source]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        todo += [KERNELS / name for name in re.findall(r'^#include "([^"]+)"', file.read_text(encoding="utf-8"), re.M)]
    return sorted(found | {KERNELS / "toolchain.txt"})


def digest(source):
    """SHA-256 of all that decides what a source is compiled to; build.rs has the same."""
    h = hashlib.sha256()
    for file in sources(source):
        h.update(file.relative_to(KERNELS).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return h.hexdigest()


def is_fresh(source, result):
    return result.exists() and f"// sources {digest(source)}\n" in result.read_text(encoding="utf-8")[:400]


def directives(source, word):
    """The words of each `// word ...` line."""
    return [line.split()[2:] for line in source.read_text(encoding="utf-8").splitlines() if line.startswith(f"// {word} ")]


def nvrtc(source, target, extra=()):
    """PTX of a source, as NVRTC gives it."""
    root = toolkit()
    lib = ctypes.CDLL(str(root / "cuda_nvrtc/lib/libnvrtc.so.12"))
    lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def text(size, get):
        n = ctypes.c_size_t()
        size(program, ctypes.byref(n))
        buffer = ctypes.create_string_buffer(n.value)
        get(program, buffer)
        return buffer.value.decode()

    program = ctypes.c_void_p()
    name = str(source.relative_to(ROOT)).encode()
    lib.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None)
    options = [f"--gpu-architecture={target.replace('sm', 'compute')}", *OPTIONS, *extra]
    options += [f"-I{root / 'cuda_runtime/include'}", f"-I{KERNELS}"]
    code = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
    log = text(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog).strip()
    if log:
        print(log, file=sys.stderr)
    if code:
        sys.exit(f"{source.relative_to(ROOT)}: {lib.nvrtcGetErrorString(code).decode()}")
    return text(lib.nvrtcGetPTXSize, lib.nvrtcGetPTX)


def compiled(job, extra=()):
    """The text of a file of ptx/."""
    source, target, _ = job
    ptx = nvrtc(source, target, extra)
    names = re.findall(r"\.entry (\w+)", ptx)
    version = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.M)
    if tuple(map(int, version.groups())) > VERSION:
        sys.exit(f"{source.relative_to(ROOT)}: {version[0]}, at most {VERSION[0]}.{VERSION[1]}")
    hot = [pattern for line in directives(source, "hot") for pattern in line]
    for pattern in hot or [""]:
        if not fnmatch.filter(names, pattern):
            sys.exit(f"{source.relative_to(ROOT)}: // hot {pattern}: no such entry, there are {', '.join(names)}")
    header = [f"// {source.relative_to(ROOT)} compiled by tools/kernels.py", f"// sources {digest(source)}"]
    for pattern, size in directives(source, "shared"):
        matching = fnmatch.filter(names, pattern)
        if not matching:
            sys.exit(f"{source.relative_to(ROOT)}: // shared {pattern}: no such entry, there are {', '.join(names)}")
        header += [f"// shared {name} {size}" for name in matching]
    return "\n".join(header) + "\n" + ptx


def assembled(job):
    """Rows of the table, and what must not be: (kernel, chip, registers, static, dynamic, spills, stack)."""
    source, target, result = job
    rows, bad = [], []
    shared = {name: int(size) for name, size in directives(result, "shared")}
    hot = [pattern for line in directives(source, "hot") for pattern in line]
    for chip in CHIPS[target]:
        with tempfile.TemporaryDirectory() as folder:
            command = [toolkit() / "cuda_nvcc/bin/ptxas", "-v", f"-arch={chip}", result, "-o", f"{folder}/cubin"]
            said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            bad.append(f"{result.name} for {chip}: {said.stderr.strip()}")
            continue
        entry = function = None
        for line in said.stderr.splitlines():
            if m := re.search(r"Compiling entry function '(\w+)'", line):
                entry = m[1]
            elif m := re.search(r"Function properties for (\S+)", line):
                function = m[1]
            elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                frame = [int(n) for n in m.groups()]
                if function != entry:
                    # Calls cost more than what they save, and ptxas does not say what of this is whose.
                    bad.append(f"{result.name} for {chip}: {function} is not inlined ({line.strip()})")
            elif m := re.search(r"Used (\d+) registers", line):
                static = re.search(r"(\d+) bytes smem", line)
                stack, stores, loads = frame
                row = (entry, chip, int(m[1]), int(static[1]) if static else 0, shared.get(entry, 0), stores + loads, stack)
                rows.append(row)
                if stores + loads and any(fnmatch.fnmatch(entry, p) for p in hot):
                    bad.append(f"{result.name} for {chip}: {entry} spills {stores + loads} bytes")
            elif re.search(r"\(C75\d\d\)", line):
                bad.append(f"{result.name} for {chip}: {line.strip()}")
    return rows, bad


def resources(done):
    """The text of RESOURCES, and what must not be."""
    done = list(done)
    rows, bad = [row for r, _ in done for row in r], [b for _, bs in done for b in bs]
    text = (
        "# What ptxas makes of the kernels\n\n"
        f"`tools/kernels.py --ptxas`, ptxas of {PACKAGES[-1]}. Bytes, but for registers; dynamic shared memory is what "
        "the launcher gives.\nWith `setmaxnreg` the registers are those at entry.\n\n" + table(rows) + "\n"
    )
    return text, bad


def table(rows):
    head = ["kernel", "chip", "registers", "static shared", "dynamic shared", "spills", "stack"]
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|--:" * 5 + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--ptxas", action="store_true")
    mode.add_argument("--lines", type=pathlib.Path, metavar="DIR")
    args = parser.parse_args()
    chosen = [job for job in jobs() if not args.ops or job[2].name.split(".")[0] in args.ops]
    if args.ops and not chosen:
        sys.exit(f"no kernels/{args.ops[0]}.cu; there are {', '.join(sorted({j[2].name.split('.')[0] for j in jobs()}))}")
    toolkit()
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        if args.ptxas:
            text, bad = resources(pool.map(assembled, chosen))
            RESOURCES.write_text(text, encoding="utf-8")
            sys.exit("\n".join(bad) if bad else 0)
        if args.check:
            texts = pool.map(compiled, chosen)
            stale = [j[2] for j, t in zip(chosen, texts) if not j[2].exists() or j[2].read_text(encoding="utf-8") != t]
            stale += [f for f in sorted(PTX.glob("*.ptx")) if f not in {j[2] for j in jobs()}]
            names = ", ".join(str(f.relative_to(ROOT)) for f in stale)
            if stale:
                sys.exit(f"not what the sources give: {names}; run tools/kernels.py")
            text, bad = resources(pool.map(assembled, chosen))
            if not args.ops and RESOURCES.read_text(encoding="utf-8") != text:
                bad.append(f"{RESOURCES.relative_to(ROOT)} is not what ptxas says; run tools/kernels.py --ptxas")
            sys.exit("\n".join(bad) if bad else 0)
        extra = ["-lineinfo"] if args.lines else []
        out = args.lines or PTX
        out.mkdir(exist_ok=True)
        todo = chosen if args.ops or args.lines else [j for j in chosen if not is_fresh(j[0], j[2])]
        for job, text in zip(todo, pool.map(compiled, todo, [extra] * len(todo))):
            (out / job[2].name).write_text(text, encoding="utf-8")
            print((out / job[2].name))
        if not args.lines:
            for file in set(PTX.glob("*.ptx")) - {j[2] for j in jobs()}:
                file.unlink()


if __name__ == "__main__":
    main()
