"""ImageReward's BLIP: its tensors by name and shape, its networks by transformers, its preprocessing and score."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from drawn import OPENAI, linear, norm, tensor

MEAN, STD = 0.16717362830052426, 1.0333394966054072
HEAD_LAYERS = (0, 2, 4, 6, 7)


@dataclass(frozen=True)
class Sizes:
    """Widths, widths inside MLPs and layers of picture and text encoder (heads are 64 wide), and the widths of the head."""

    vision: int
    vision_inner: int
    vision_layers: int
    patch: int
    grid: int
    text: int
    text_inner: int
    text_layers: int
    positions: int
    projected: int
    head: tuple

    @property
    def side(self):
        return self.patch * self.grid


FULL = Sizes(vision=1024, vision_inner=4096, vision_layers=24, patch=16, grid=14, text=768, text_inner=3072, text_layers=12,
             positions=512, projected=256, head=(768, 1024, 128, 64, 16, 1))


def tensors(s, vocabulary):
    """Every tensor, as `drawn.py` lists them."""
    v = "blip.visual_encoder."
    yield from tensor(v + "cls_token", 1, 1, s.vision, scale=1.0)
    yield from tensor(v + "pos_embed", 1, s.grid * s.grid + 1, s.vision, scale=0.5)
    yield from tensor(v + "patch_embed.proj.weight", s.vision, 3, s.patch, s.patch)
    yield from tensor(v + "patch_embed.proj.bias", s.vision)
    for i in range(s.vision_layers):
        b = f"{v}blocks.{i}."
        yield from norm(b + "norm1", s.vision)
        yield from norm(b + "norm2", s.vision)
        yield from linear(b + "attn.qkv", s.vision, 3 * s.vision)
        yield from linear(b + "attn.proj", s.vision, s.vision)
        yield from linear(b + "mlp.fc1", s.vision, s.vision_inner)
        yield from linear(b + "mlp.fc2", s.vision_inner, s.vision)
    yield from norm(v + "norm", s.vision)
    t = "blip.text_encoder."
    yield from tensor(t + "embeddings.word_embeddings.weight", vocabulary, s.text, scale=1.2)
    yield from tensor(t + "embeddings.position_embeddings.weight", s.positions, s.text, scale=0.5)
    yield from norm(t + "embeddings.LayerNorm", s.text)
    for i in range(s.text_layers):
        b = f"{t}encoder.layer.{i}."
        for part, source in (("attention", s.text), ("crossattention", s.vision)):
            yield from linear(f"{b}{part}.self.query", s.text, s.text)
            yield from linear(f"{b}{part}.self.key", source, s.text)
            yield from linear(f"{b}{part}.self.value", source, s.text)
            yield from linear(f"{b}{part}.output.dense", s.text, s.text)
            yield from norm(f"{b}{part}.output.LayerNorm", s.text)
        yield from linear(b + "intermediate.dense", s.text, s.text_inner)
        yield from linear(b + "output.dense", s.text_inner, s.text)
        yield from norm(b + "output.LayerNorm", s.text)
    yield from linear("blip.vision_proj", s.vision, s.projected)
    yield from linear("blip.text_proj", s.text, s.projected)
    for layer, inputs, outputs in zip(HEAD_LAYERS, s.head, s.head[1:]):
        yield from linear(f"mlp.layers.{layer}", inputs, outputs)


def networks(w, s, vocabulary):
    """transformers' two halves with these weights."""
    vision = BlipVisionModel(BlipVisionConfig(
        hidden_size=s.vision, intermediate_size=s.vision_inner, num_hidden_layers=s.vision_layers,
        num_attention_heads=s.vision // 64, image_size=s.side, patch_size=s.patch, hidden_act="gelu", layer_norm_eps=1e-6)).eval()
    text = BlipTextModel(BlipTextConfig(
        vocab_size=vocabulary, hidden_size=s.text, encoder_hidden_size=s.vision, intermediate_size=s.text_inner,
        num_hidden_layers=s.text_layers, num_attention_heads=s.text // 64, max_position_embeddings=s.positions, hidden_act="gelu",
        layer_norm_eps=1e-12, is_decoder=True), add_pooling_layer=False).eval()
    names = (("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
             ("patch_embed.proj", "embeddings.patch_embedding"), ("blocks.", "encoder.layers."), ("norm1", "layer_norm1"),
             ("norm2", "layer_norm2"), ("attn.qkv", "self_attn.qkv"), ("attn.proj", "self_attn.projection"))
    of_vision = {}
    for name, value in w.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            name = name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name
            for there, here in names:
                name = name.replace(there, here)
            of_vision[name] = value
    vision.load_state_dict(of_vision)
    of_text = {n.removeprefix("blip.text_encoder."): x for n, x in w.items() if n.startswith("blip.text_encoder.")}
    missing, unexpected = text.load_state_dict(of_text, strict=False)
    assert not unexpected and all("position_ids" in m for m in missing), (missing, unexpected)
    return vision, text


def preprocess(picture, size):
    """torchvision's Resize(size, bicubic), CenterCrop(size), ToTensor, Normalize on a picture of PIL."""
    w, h = picture.size
    wide = (int(size * w / h), size) if w > h else (size, int(size * h / w))
    picture = picture.resize(wide, Image.BICUBIC)
    left, top = (int(round((side - size) / 2.0)) for side in wide)
    picture = picture.crop((left, top, left + size, top + size))
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in OPENAI)
    return (x - mean) / std


def read(w, vision, text, pixels, ids, mask):
    """Of `pixels` [b, 3, side, side] and `ids` [b, n]: the picture's tokens, [CLS] after reading, and the scores [b], in f64."""
    tokens = vision(pixel_values=pixels).last_hidden_state
    seen = torch.ones(tokens.shape[:2], dtype=torch.long)
    hidden = text(input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens, encoder_attention_mask=seen,
                  is_decoder=False).last_hidden_state
    x = hidden[:, 0].float()
    for layer in HEAD_LAYERS:
        x = torch.nn.functional.linear(x, w[f"mlp.layers.{layer}.weight"], w[f"mlp.layers.{layer}.bias"])
    return tokens, hidden[:, 0], (x[:, 0].double() - MEAN) / STD
