"""The rewards of benches/rewards.rs by transformers and open_clip: random weights at the true sizes, 512x512 pictures.

    python benches/baselines/rewards.py DIR make    # vit_l/, vit_h/HPS_v2.1_compressed.pt, head.pth: 4 GB
    python benches/baselines/rewards.py DIR [RUNS]  # seconds per image of each

Needs open_clip_torch and torchvision.
"""

import statistics
import sys
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torchvision.transforms import InterpolationMode
from transformers import CLIPConfig, CLIPModel

PICTURES, SIDE, SIZE = 8, 512, 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXT = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            hidden_act="quick_gelu", projection_dim=768, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
VISION = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
              patch_size=14, hidden_act="quick_gelu", projection_dim=768)


def head():
    sizes = (768, 1024, 128, 64, 16, 1)
    layers = [torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
    return {f"layers.{i}.{part}": getattr(layer, part).data
            for i, layer in zip((0, 2, 4, 6, 7), layers) for part in ("weight", "bias")}


def make(folder):
    folder.joinpath("vit_h").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=768)).save_pretrained(folder / "vit_l")
    torch.save(head(), folder / "head.pth")
    model = open_clip.create_model("ViT-H-14", pretrained=None)
    state = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "vit_h/HPS_v2.1_compressed.pt")


def time_of(name, run, runs):
    """`run` gives a number per picture."""
    with torch.inference_mode():
        run()
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            run()
            seconds.append((time.perf_counter() - start) / PICTURES)
    median = statistics.median(seconds)
    print(f"{name}: {median:.3f} s per image ({1 / median:.2f} images/s)", flush=True)


def main():
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["make"]:
        return make(folder)
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    torch.manual_seed(1)
    planes = (torch.randn(PICTURES, 3, SIDE, SIDE) / 2 + 0.5).clamp(0, 1)
    for dtype in (torch.float32, torch.bfloat16):
        short = {torch.float32: "F32", torch.bfloat16: "Bf16"}[dtype]
        model = CLIPModel.from_pretrained(folder / "vit_l").to(dtype).eval()
        text = F.normalize(torch.randn(PICTURES, 768), dim=-1)

        def clipscore():
            pixels = TF.normalize(TF.resize(planes, SIZE, antialias=True), MEAN, STD).to(dtype)
            image = F.normalize(model.get_image_features(pixels).pooler_output.float(), dim=-1)
            return (image * text).sum(-1)

        time_of(f"clipscore {short}", clipscore, runs)
        del model
        model = open_clip.create_model("ViT-H-14", pretrained=None)
        state = torch.load(folder / "vit_h/HPS_v2.1_compressed.pt")["state_dict"]
        model.load_state_dict(state)
        model = model.to(dtype).eval()
        text = F.normalize(torch.randn(PICTURES, 1024), dim=-1)

        def hpsv2():
            pixels = TF.normalize(TF.resize(planes, SIZE, InterpolationMode.BICUBIC, antialias=True), MEAN, STD)
            image = model.encode_image(pixels.to(dtype), normalize=True)
            return (image.float() * text).sum(-1)

        time_of(f"hpsv2 {short}", hpsv2, runs)
        del model


if __name__ == "__main__":
    main()
