"""ImageReward at small sizes by transformers' BLIP -> tests/fixtures/imagereward.

`tensors.json` lists what is in its file, under ImageReward's own names; the numbers follow from the names (`common.uniform`, times
`scale`, plus `mean`). `vocab.txt` is a small vocabulary of BERT. `io.safetensors` has pictures and what becomes of them, `io.json`
the prompts, their ids and the scores.
"""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from common import FIXTURES, Listed, uniform

V, V_INNER, V_LAYERS, PATCH, GRID = 128, 192, 2, 16, 3
T, T_INNER, T_LAYERS, POSITIONS = 128, 160, 2, 24
HEAD = [T, 48, 12, 16, 8, 1]
MEAN, STD = 0.16717362830052426, 1.0333394966054072
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
LENGTH = 12
PROMPTS = ["a red circle", "", "Two blue squares, unaffable!", "a Café [SEP] of [DEC] and 12 中文 words that go on and on and on"]
STRINGS = PROMPTS + ["[ENC]", "[enc]", "ÀÉÎ naïve", "a\u0300b", "tab\tand\nline", "x" * 120, "''..!?", "\u200bzero\ufeff", "�a\u0000b",
                     "the unaffable reds", "1234", "a-b_c", "“curly” quotes’", "한국어", "İstanbul", "ﬁne", "[PAD] [MASK] [CLS]"]
FOLDER = FIXTURES / "imagereward"
FOLDER.mkdir(parents=True, exist_ok=True)

PIECES = ("[PAD] [UNK] [CLS] [SEP] [MASK] a b c e o s x red circle two blue square ##s un ##aff ##able cafe of and words that go on the "
          "na ##ive ##i tab line 1 2 ##2 ##3 ##4 12 中 , . ! ? ' - _ ##x ##b i ##stan ##bul fine aei zero ab “ ” ’ quotes curly 한국어 "
          "[ ] enc dec sep ##ei").split()


def vocabulary():
    (FOLDER / "vocab.txt").write_text("".join(p + "\n" for p in PIECES), encoding="utf-8")
    tokenizer = BertTokenizer(vocab=str(FOLDER / "vocab.txt"), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [len(PIECES), len(PIECES) + 1]
    return tokenizer


def ids(tokenizer, text):
    out = tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH)
    return out["input_ids"], out["attention_mask"]


listed = Listed()
tensor, linear, norm = listed.tensor, listed.linear, listed.norm


def weights(vocabulary):
    v = "blip.visual_encoder."
    w = tensor(v + "cls_token", 1, 1, V, scale=1.0) | tensor(v + "pos_embed", 1, GRID * GRID + 1, V, scale=0.5)
    w |= tensor(v + "patch_embed.proj.weight", V, 3, PATCH, PATCH) | tensor(v + "patch_embed.proj.bias", V)
    for i in range(V_LAYERS):
        b = f"{v}blocks.{i}."
        w |= norm(b + "norm1", V) | norm(b + "norm2", V) | linear(b + "attn.qkv", V, 3 * V) | linear(b + "attn.proj", V, V)
        w |= linear(b + "mlp.fc1", V, V_INNER) | linear(b + "mlp.fc2", V_INNER, V)
    w |= norm(v + "norm", V)
    t = "blip.text_encoder."
    w |= tensor(t + "embeddings.word_embeddings.weight", vocabulary, T, scale=1.2)
    w |= tensor(t + "embeddings.position_embeddings.weight", POSITIONS, T, scale=0.5) | norm(t + "embeddings.LayerNorm", T)
    for i in range(T_LAYERS):
        b = f"{t}encoder.layer.{i}."
        for part, source in (("attention", T), ("crossattention", V)):
            w |= linear(f"{b}{part}.self.query", T, T) | linear(f"{b}{part}.self.key", source, T)
            w |= linear(f"{b}{part}.self.value", source, T)
            w |= linear(f"{b}{part}.output.dense", T, T) | norm(f"{b}{part}.output.LayerNorm", T)
        w |= linear(b + "intermediate.dense", T, T_INNER) | linear(b + "output.dense", T_INNER, T) | norm(b + "output.LayerNorm", T)
    w |= linear("blip.vision_proj", V, 8) | linear("blip.text_proj", T, 8)
    for layer, inputs, outputs in zip((0, 2, 4, 6, 7), HEAD, HEAD[1:]):
        w |= linear(f"mlp.layers.{layer}", inputs, outputs)
    return w


def networks(w, vocabulary):
    """transformers' two halves with these weights."""
    vision = BlipVisionModel(BlipVisionConfig(
        hidden_size=V, intermediate_size=V_INNER, num_hidden_layers=V_LAYERS, num_attention_heads=V // 64,
        image_size=GRID * PATCH, patch_size=PATCH, hidden_act="gelu", layer_norm_eps=1e-6)).eval()
    text = BlipTextModel(BlipTextConfig(
        vocab_size=vocabulary, hidden_size=T, encoder_hidden_size=V, intermediate_size=T_INNER, num_hidden_layers=T_LAYERS,
        num_attention_heads=T // 64, max_position_embeddings=POSITIONS, hidden_act="gelu", layer_norm_eps=1e-12,
        is_decoder=True), add_pooling_layer=False).eval()
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


def score(w, vision, text, pixels, ids, mask):
    tokens = vision(pixel_values=pixels[None]).last_hidden_state
    seen = torch.ones(tokens.shape[:2], dtype=torch.long)
    hidden = text(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask]), encoder_hidden_states=tokens,
                  encoder_attention_mask=seen, is_decoder=False).last_hidden_state
    x = hidden[:, 0]
    for layer in (0, 2, 4, 6, 7):
        x = torch.nn.functional.linear(x, w[f"mlp.layers.{layer}.weight"], w[f"mlp.layers.{layer}.bias"])
    return tokens[0], hidden[0, 0], (x.item() - MEAN) / STD


@torch.no_grad()
def main():
    tokenizer = vocabulary()
    w = weights(len(PIECES) + 2)
    vision, text = networks(w, len(PIECES) + 2)
    io, scores = {}, []
    sizes = [(60, 50), (48, 48), (37, 51), (51, 48)]
    for i, (prompt, (width, height)) in enumerate(zip(PROMPTS, sizes)):
        values = (uniform(f"picture {i}", width * height * 3) * 128 + 128).astype(np.uint8).reshape(height, width, 3)
        io[f"{i}.image"] = torch.from_numpy(values)
        pixels = preprocess(Image.fromarray(values), GRID * PATCH)
        io[f"{i}.pixel_values"] = pixels.contiguous()
        io[f"{i}.tokens"], io[f"{i}.cls"], value = score(w, vision, text, pixels, *ids(tokenizer, prompt))
        scores.append(value)
    print(scores)
    save_file({k: v.contiguous() for k, v in io.items()}, FOLDER / "io.safetensors")
    rows = []
    for string in STRINGS:
        row, mask = ids(tokenizer, string)
        rows.append(row[:sum(mask)])
    listed.write(FOLDER / "tensors.json")
    io = {"max_length": LENGTH, "strings": STRINGS, "ids": rows, "prompts": PROMPTS, "scores": scores}
    (FOLDER / "io.json").write_text(json.dumps(io) + "\n")


if __name__ == "__main__":
    main()
