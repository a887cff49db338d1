"""The work of benches/gpu in PyTorch, on the same GPU and in the same cases: what a careful user would write, eager and compiled.
Writes one line of JSON a case; `cargo bench --bench gpu -- --table DIR` sets them beside the engine's.

    python benches/baselines/gpu.py --log DIR/torch.jsonl [--seconds N] [--small] [OP ..]
    python benches/baselines/gpu.py --merge DIR            # ratios, where there is no engine

Products and attention are PyTorch's own (cuBLAS, SDPA's fastest backend); LoRA is PEFT's order of operations; the whole
transformer is diffusers', if that is installed, with LoRAs by PEFT where that is.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

RUNS, MOST, WARM = 50, 4.0, 3
SETS, RANK = 2, 32


def merge(folder):
    """Prints both times of every case and their ratio."""
    found = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                line = json.loads(line)
            except ValueError:
                continue
            if line.get("kind") == "bench" and "seconds" in line:
                found.setdefault((line["op"], line["case"]), {})[line["who"]] = line["seconds"]
    others = ["cublaslt", "torch eager", "torch compiled"]
    print("| op | case | engine | " + " | ".join(others) + " |\n|---|---|--:|--:|--:|--:|")
    for (op, case), by in found.items():
        ours = by.get("engine")
        show = lambda s: "" if s is None else f"{1e6 * s:.1f} us" + (f" ({s / ours:.2f}x)" if ours else "")
        print(f"| {op} | {case} | {'' if ours is None else f'{1e6 * ours:.1f} us'} | " + " | ".join(show(by.get(o)) for o in others) + " |")


class Session:
    def __init__(self, args):
        import torch

        self.torch, self.small = torch, args.small
        self.end = time.monotonic() + args.seconds
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.log = open(args.log, "a") if args.log else None
        self.ops = args.ops
        torch.manual_seed(0)
        # Where it is allowed to, cuBLAS adds up halves in halves; the engine adds in f32.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.line({"kind": "torch", "version": torch.__version__, "device": self.name()})

    def name(self):
        return self.torch.cuda.get_device_name() if self.device == "cuda" else "cpu, nothing is measured"

    def line(self, value):
        text = json.dumps(value)
        print(text, flush=True)
        if self.log:
            self.log.write(text + "\n")
            self.log.flush()

    def normal(self, *shape, std=1.0, grad=False, dtype=None):
        x = self.torch.randn(*shape, device=self.device) * std
        x = x.to(dtype or (self.torch.float32 if len(shape) == 1 else self.torch.bfloat16))
        return x.requires_grad_(grad)

    def both(self, op, case, f):
        """`f(i)` as it is, and compiled."""
        self.time(op, case, "torch eager", f)
        self.time(op, case, "torch compiled", lambda: self.torch.compile(f, mode="max-autotune-no-cudagraphs"), make=True)

    def time(self, op, case, who, f, make=False):
        if (self.ops and op not in self.ops) or time.monotonic() > self.end:
            return
        torch = self.torch
        try:
            f = f() if make else f
            for i in range(WARM):
                f(i % SETS)
            seconds = self.events(f) if self.device == "cuda" else []
        except Exception as e:  # A case that PyTorch cannot do is none of ours.
            self.line({"kind": "bench", "op": op, "case": case, "who": who, "skipped": f"{type(e).__name__}: {e}"[:200]})
            if self.device == "cuda":
                torch.cuda.empty_cache()
            return
        line = {"kind": "bench", "op": op, "case": case, "who": who, "runs": len(seconds)}
        if seconds:
            line |= {"seconds": statistics.median(seconds), "least": min(seconds)}
        self.line(line)

    def events(self, f):
        """Seconds from the beginning of each call to that of the next, many calls in a run where they are short."""
        cuda = self.torch.cuda
        def run(runs, calls):
            marks = [cuda.Event(enable_timing=True) for _ in range(runs + 1)]
            for r in range(runs):
                marks[r].record()
                for i in range(calls):
                    f(i % SETS)
            marks[runs].record()
            cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 / calls for a, b in zip(marks, marks[1:])]
        single = run(2, 1)[1]
        calls = min(max(int(300e-6 / single), 1), 64)
        calls += -calls % SETS
        return run(min(max(int(MOST / single / calls), 5), RUNS), calls)


def linear(s):
    F = s.torch.nn.functional
    b16, image, text, d = (2, 32, 9, 128) if s.small else (16, 1024, 205, 1536)
    for stream, b, n in (("image", b16, image), ("text", b16, text), ("image, batch 2", 2, image)):
        m = b * n
        x = [s.normal(b, n, d) for _ in range(SETS)]
        gate = s.normal(b, 1, d)
        weight = lambda o, i: s.normal(o, i, std=1 / math.sqrt(i))
        w3, w, bias3, bias = weight(3 * d, d), weight(d, d), s.normal(3 * d).bfloat16(), s.normal(d).bfloat16()
        halves = (slice(0, b // 2), slice(b // 2, b))
        factors = [[(weight(RANK, d), s.normal(d, RANK, std=0.02)) for _ in range(3)] for _ in halves]

        def adapted(x, y, layer):
            # PEFT with mixed batches: each adapter's part, scaled and added.
            parts = [y[rows] + F.linear(F.linear(x[rows], f[layer][0]), f[layer][1]) * 2.0 for rows, f in zip(halves, factors)]
            return s.torch.cat(parts)

        def qkv_lora(i):
            return [adapted(x[i], y, j) for j, y in enumerate(F.linear(x[i], w3, bias3).chunk(3, -1))]

        case = f"{stream} qkv {m}x{3 * d}x{d}"
        s.both("linear", case, lambda i: F.linear(x[i], w3, bias3))
        s.both("linear", f"{case}, LoRA", qkv_lora)
        case = f"{stream} out {m}x{d}x{d}"
        s.both("linear", case, lambda i: x[1 - i] + gate * F.linear(x[i], w, bias))
        s.both("linear", f"{case}, LoRA", lambda i: x[1 - i] + gate * adapted(x[i], F.linear(x[i], w, bias), 0))
        up, down, wide_bias = weight(4 * d, d), weight(d, 4 * d), s.normal(4 * d).bfloat16()
        wide = [s.normal(b, n, 4 * d) for _ in range(SETS)]
        s.both("linear", f"{stream} fc1 {m}x{4 * d}x{d}", lambda i: F.gelu(F.linear(x[i], up, wide_bias), approximate="tanh"))
        s.both("linear", f"{stream} fc2 {m}x{d}x{4 * d}", lambda i: x[i] + gate * F.linear(wide[i], down, bias))
        if "batch" in stream:
            continue
        s.both("linear_backward", f"{stream} out, dx {m}x{d}x{d}", lambda i: x[i] @ w)
        s.both("linear_backward", f"{stream} fc1, dx {m}x{d}x{4 * d}", lambda i: wide[i] @ up)
        s.both("linear_backward", f"{stream} fc2, dx {m}x{4 * d}x{d}", lambda i: x[i] @ down)
        a, low = factors[0][0]

        def grads(i):
            # What autograd does for PEFT's layer.
            dy, flat = x[1 - i].reshape(m, d), x[i].reshape(m, d)
            u, t = dy @ low * 2.0, flat @ a.T
            return u.T @ flat, dy.T @ t * 2.0, dy @ w + u @ a

        s.both("linear_backward", f"{stream} out, dx dA dB {m}x{d}x{d}", grads)


def attention(s):
    F, torch = s.torch.nn.functional, s.torch
    heads, head = (2, 64) if s.small else (24, 64)
    lengths = ((32,), (32, 9)) if s.small else ((1024,), (1024, 205), (4096, 333))
    for parts, b in ((p, b) for p in lengths for b in ((1,) if s.small else (16, 2))):
        name = f"{'+'.join(map(str, parts))} batch {b}"
        # As diffusers does it: parts are put together, heads moved in front.
        operands = lambda grad: [[[s.normal(b, n, heads * head, grad=grad) for n in parts] for _ in range(3)] for _ in range(SETS)]

        def attend(set):
            q, k, v = (torch.cat(t, 1).view(b, -1, heads, head).transpose(1, 2) for t in set)
            return F.scaled_dot_product_attention(q, k, v)

        sets = operands(False)
        s.both("attention", f"forward {name}", lambda i: attend(sets[i]))
        sets = operands(True)
        done = [attend(set) for set in sets]
        dout = torch.randn_like(done[0])
        leaves = [[t for ts in set for t in ts] for set in sets]
        s.time("attention", f"backward {name}", "torch eager", lambda i: torch.autograd.grad(done[i], leaves[i], dout, retain_graph=True))


def elementwise(s):
    F, torch = s.torch.nn.functional, s.torch
    b, image, text, d, heads = (2, 32, 9, 128, 2) if s.small else (16, 1024, 205, 1536, 24)
    n = image + text
    x = [s.normal(b, n, d) for _ in range(SETS)]
    shift, scale = s.normal(b, 1, d), s.normal(b, 1, d)
    s.both("adaln", f"forward {b}x{n}x{d}", lambda i: F.layer_norm(x[i], (d,), eps=1e-6) * (1 + scale) + shift)
    weight = s.normal(d // heads).bfloat16()
    head = lambda i: x[i].view(b, n, heads, d // heads)
    s.both("rms_norm", f"forward {b}x{n}x{heads}x{d // heads}", lambda i: F.rms_norm(head(i), (d // heads,), weight, 1e-6))
    wide = [s.normal(b, image, 4 * d) for _ in range(SETS)]
    s.both("gelu", f"forward {b}x{image}x{4 * d}", lambda i: F.gelu(wide[i], approximate="tanh"))
    for side, c in ((9, 64),) if s.small else ((64, 512), (128, 512), (256, 256), (512, 128)):
        pictures = [s.normal(1, c, side, side).contiguous(memory_format=torch.channels_last) for _ in range(SETS)]
        weight, bias = s.normal(c).bfloat16(), s.normal(c).bfloat16()
        kernel = s.normal(c, c, 3, 3, std=1 / math.sqrt(9 * c)).contiguous(memory_format=torch.channels_last)
        s.both("group_norm", f"silu {side}x{side}x{c}", lambda i: F.silu(F.group_norm(pictures[i], 32, weight, bias, 1e-6)))
        s.both("conv2d", f"3x3 {side}x{side}x{c}", lambda i: F.conv2d(pictures[i], kernel, bias, padding=1))
        if side < 512:
            double = lambda i: F.conv2d(F.interpolate(pictures[i], scale_factor=2.0), kernel, bias, padding=1)
            s.both("conv2d", f"doubled {side}x{side}x{c}", double)
    count = 4099 if s.small else 18_780_000
    params = torch.nn.Parameter(s.normal(count, std=0.1))
    params.grad = s.normal(count, std=1e-3)
    optimizer = torch.optim.AdamW([params], lr=1e-4, weight_decay=0.01, fused=s.device == "cuda")
    s.time("adamw", f"{count} parameters", "torch eager", lambda i: optimizer.step())


def transformer(s):
    torch = s.torch
    try:
        from diffusers import SD3Transformer2DModel
    except ImportError:
        return s.line({"kind": "bench", "op": "transformer", "case": "all", "who": "torch eager", "skipped": "no diffusers"})
    layers, heads, width, pooled = (2, 1, 32, 32) if s.small else (24, 24, 4096, 2048)
    side, text, batches = (8, 5, (2,)) if s.small else (64, 205, (16, 2))
    with torch.device(s.device):
        model = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
            num_attention_heads=heads, joint_attention_dim=width, caption_projection_dim=64 * heads, pooled_projection_dim=pooled,
            pos_embed_max_size=16 if s.small else 384, dual_attention_layers=tuple(range(1 if s.small else 13)), qk_norm="rms_norm",
        ).bfloat16().requires_grad_(False)

    def inputs(b):
        return [dict(
            hidden_states=s.normal(b, 16, side, side), encoder_hidden_states=s.normal(b, text, width),
            pooled_projections=s.normal(b, pooled), timestep=torch.full((b,), 500.0, device=s.device), return_dict=False,
        ) for _ in range(SETS)]

    def forwards(policy, step):
        compiled = None
        for b in batches:
            sets = inputs(b)
            for who in ("torch eager", "torch compiled"):
                if who == "torch compiled" and compiled is None:
                    compiled = torch.compile(model)
                run = compiled if who == "torch compiled" else model
                with torch.inference_mode():
                    s.time("transformer", f"forward, {policy}, batch {b}", who, lambda i: run(**sets[i]))
                if step:
                    s.time("transformer", f"train step, checkpointing None, batch {b}", who, lambda i: step(run, sets[i]))

    forwards("base", None)
    try:
        from peft import LoraConfig
    except ImportError:
        return
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    model.add_adapter(LoraConfig(r=4 if s.small else RANK, lora_alpha=8 if s.small else 2 * RANK, init_lora_weights="gaussian", target_modules=[f"attn.{t}" for t in targets]))

    def step(run, inputs):
        velocity = run(**inputs)[0]
        velocity.backward(velocity.detach())

    forwards("LoRA", step)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that everything is there; also without a GPU")
    parser.add_argument("--merge", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.merge:
        return merge(args.merge)
    s = Session(args)
    for part in (transformer, attention, linear, elementwise):
        part(s)


if __name__ == "__main__":
    main()
