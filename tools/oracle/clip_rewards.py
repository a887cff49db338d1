"""What rewards by CLIP rest on -> tests/fixtures/{open_clip,clip_rewards}, tests/fixtures/clip_ids.json.

CLIP in the layout of open_clip, the preprocessing of the programs that rewards come from, gradients to the picture, and the
ids of the real vocabulary. Needs open_clip_torch, torchvision and ftfy.
"""

import gzip
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from diffusers import AutoencoderKL
from open_clip import tokenizer as open_clip_tokenizer
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from transformers import CLIPModel, CLIPTokenizer

from common import FIXTURES, case_dir, generator, quiet, randn, randomize, save_io
from tokenizer_ids import STRINGS

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE = 16
# Height and width: one pixel, a line, shrinking and enlarging, odd margins, a longest edge that is there already. None whose
# shorter edge becomes one column: of those torch 2.11 repeats the first row (antialiased, from planes).
PICTURES = [(1, 1), (1, 37), (37, 4), (50, 70), (61, 37), (9, 12), (16, 16), (16, 19), (16, 9), (40, 17)]
MORE = ["it\u2019s a \u201cred\u201d circle", "ﬁve ﬂowers", "ＦＵＬＬ　ｗｉｄｔｈ", "rock &amp;amp; roll", "a &lt;b&gt; c &copy 2020", "1 &lt 2",
        "<i>&eacute;</i>", "caf&eacute; &#233; &#xE9;", "a photo of a bench", "A high-detail photograph, 8k; of Łódź!",
        " ".join(["very"] * 100) + " long"]


@torch.no_grad()
def open_clip():
    cases = {
        "named": dict(embed_dim=20, quick_gelu=True,
                      vision_cfg=dict(image_size=24, patch_size=8, width=32, layers=2, head_width=16, mlp_ratio=1.5),
                      text_cfg=dict(context_length=16, vocab_size=64, width=16, heads=2, layers=2, mlp_ratio=2.0)),
        "bare": dict(embed_dim=24, quick_gelu=False,
                     vision_cfg=dict(image_size=24, patch_size=8, width=64, layers=1, mlp_ratio=1.0),
                     text_cfg=dict(context_length=16, vocab_size=64, width=64, heads=1, layers=1, mlp_ratio=0.5)),
    }
    for name, config in cases.items():
        model = CLIP(**config)
        randomize(model, "open_clip/" + name, [("in_proj_weight", 1.7)])
        model.logit_scale.fill_(2.3)
        d = case_dir("open_clip", name)
        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        if name == "named":
            (d / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config), indent=1) + "\n")
        else:  # as HPSv2's file: in half precision, from several processes
            tensors = {"module." + k: v.half() for k, v in tensors.items()}
            model.load_state_dict({k[7:]: v.float() for k, v in tensors.items()})
        save_file(tensors, d / "open_clip_model.safetensors")
        ids = torch.tensor([[60, 5, 17, 33, 63] + [0] * 11, [60, 9, 2, 2, 41, 12, 8, 63] + [0] * 8,
                            [60, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 63]])
        pixels = randn(generator("open_clip/pixels/" + name), 3, 3, 24, 24)
        save_io(d, dict(pixel_values=pixels, input_ids=ids, image_embeds=model.encode_image(pixels),
                        text_embeds=model.encode_text(ids), logit_scale=model.logit_scale.reshape(1)))


def normalised(x):
    return TF.normalize(x, MEAN, STD)


def longest(h, w, size):
    scale = size / max(h, w)
    return tuple(max(1, round(side * scale)) for side in (h, w))


def around(x, size, pad):
    h, w = (x.height, x.width) if isinstance(x, Image.Image) else x.shape[-2:]
    left, top = (size - w) // 2, (size - h) // 2
    return pad(x, [left, top, size - w - left, size - h - top])


def cropped(x, size):  # CLIPScore in DiffusionNFT
    return normalised(T.Compose([T.Resize(size, antialias=True), T.CenterCrop(size)])(x))


def padded(x, size):  # HPSv2 in DiffusionNFT and RSM
    x = TF.resize(x, longest(*x.shape[-2:], size), InterpolationMode.BICUBIC, antialias=True)
    return normalised(around(x, size, TF.pad))


def stretched(x, size):  # the aesthetic reward of RSM
    return normalised(F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False))


def preprocess():
    out = {}
    to_tensor = lambda p: normalised(TF.to_tensor(p))
    for h, w in PICTURES:
        name = f"{h}x{w}"
        x = torch.randint(0, 256, (h, w, 3), generator=generator("clip_rewards/" + name)).to(torch.uint8)
        if (h + w) % 2:  # the extremes, so that sums leave the range
            x = (x > 127).to(torch.uint8) * 255
        picture, planes = Image.fromarray(x.numpy()), x.permute(2, 0, 1)[None].float() / 255
        out[f"{name}.image"] = x
        resize = T.Resize(SIZE, InterpolationMode.BICUBIC)
        out[f"{name}.open_clip"] = to_tensor(T.CenterCrop(SIZE)(resize(picture)))
        long = picture.resize(longest(h, w, SIZE)[::-1], Image.BICUBIC)
        out[f"{name}.padded_pil"] = to_tensor(around(long, SIZE, TF.pad))
        out[f"{name}.cropped"], out[f"{name}.padded"] = cropped(planes, SIZE)[0], padded(planes, SIZE)[0]
        out[f"{name}.stretched"] = stretched(planes, SIZE)[0]
    save_io(FIXTURES / "clip_rewards" / "preprocess.safetensors", out)


def head(width):
    """As the aesthetic head, with other widths."""
    g, sizes = generator("clip_rewards/head"), [width, 12, 8, 6, 4, 1]
    out = {}
    for layer, inputs, outputs in zip((0, 2, 4, 6, 7), sizes, sizes[1:]):
        out[f"layers.{layer}.weight"] = randn(g, outputs, inputs, std=1 / math.sqrt(inputs))
        out[f"layers.{layer}.bias"] = randn(g, outputs, std=0.3)
    return out


def through(layers, x):
    for i in (0, 2, 4, 6, 7):
        x = x @ layers[f"layers.{i}.weight"].T + layers[f"layers.{i}.bias"]
    return x[..., 0]


def gradients():
    """Scores of decoded pictures in double precision, and their gradients to them."""
    model = CLIPModel.from_pretrained(FIXTURES / "clip" / "quick").double().eval()
    d, layers = FIXTURES / "clip_rewards", head(20)
    save_file(layers, d / "head.safetensors")
    layers = {k: v.double() for k, v in layers.items()}
    decoded = (randn(generator("clip_rewards/decoded"), 2, 30, 21, 3) * 0.6)
    text = F.normalize(randn(generator("clip_rewards/text"), 2, 20).double(), dim=-1)
    out = dict(decoded=decoded, text=text.float())
    text = F.normalize(out["text"].double(), dim=-1)
    for name, steps in (("cropped", cropped), ("padded", padded), ("stretched", stretched)):
        x = decoded.double().requires_grad_()
        pixels = steps((x.permute(0, 3, 1, 2) / 2 + 0.5).clamp(0, 1), 24)
        image = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        scores = through(layers, image) if name == "stretched" else (image * text).sum(-1)
        scores.sum().backward()
        out[f"{name}.scores"], out[f"{name}.gradient"] = scores.detach().float(), x.grad.float()
    save_io(d / "gradients.safetensors", out)


def to_latent():
    """The weighted sum of all four rewards of the pictures of latents, and its gradient to these, in double precision."""
    vae = AutoencoderKL.from_pretrained(FIXTURES / "autoencoder" / "vae16").double().eval()
    clip = CLIPModel.from_pretrained(FIXTURES / "clip" / "quick").double().eval()
    layers = {k: v.double() for k, v in head(20).items()}
    latent = randn(generator("clip_rewards/latent"), 2, 16, 4, 6) * 0.7
    text = randn(generator("clip_rewards/latent/text"), 2, 20)
    unit = F.normalize(text.double(), dim=-1)
    x = latent.double().requires_grad_()
    decoded = vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample
    planes = (decoded / 2 + 0.5).clamp(0, 1)
    total = 0
    for steps, weight in ((padded, 2 + 0.5 * clip.logit_scale.exp() / 26), (cropped, -1.5), (stretched, 0.25)):
        image = F.normalize(clip.get_image_features(steps(planes, 24)).pooler_output, dim=-1)
        total = total + weight * (through(layers, image) if steps is stretched else (image * unit).sum(-1))
    total.sum().backward()
    out = dict(latent=latent, text=text, sum=total.detach().float(), gradient=x.grad.float())
    save_io(FIXTURES / "clip_rewards" / "to_latent.safetensors", out)


def ids():
    strings = STRINGS + MORE
    simple = open_clip_tokenizer.SimpleTokenizer()
    with tempfile.TemporaryDirectory() as d:
        lines = gzip.open(open_clip_tokenizer.default_bpe()).read().decode().split("\n")[1:49152 - 256 - 2 + 1]
        vocabulary = {k: v for k, v in simple.encoder.items() if v < 49406}
        vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
        Path(d, "vocab.json").write_text(json.dumps(vocabulary))
        Path(d, "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
        hf = CLIPTokenizer.from_pretrained(d)
        transformers = [hf(s, truncation=True, max_length=77).input_ids for s in strings]
    rows = simple(strings).tolist()
    cut = [row[:row.index(49407) + 1] for row in rows]
    rows = [json.dumps([s, a, b]) for s, a, b in zip(strings, transformers, cut)]
    (FIXTURES / "clip_ids.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")
    print(len(rows), "strings")


def main():
    quiet()
    open_clip()
    case_dir("clip_rewards")
    preprocess()
    gradients()
    to_latent()
    ids()


if __name__ == "__main__":
    main()
