"""mPLUG-Owl2 as DeQA-Score has it: its tensors by name and shape, its formulas, its question and its preprocessing.

No package has the model: what is here follows its authors' code (`mplug_owl2/model/{visual_encoder,modeling_llama2}.py` of
DeQA-Score), with LLaMA's rotary embedding by transformers.
"""

import io
from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from drawn import OPENAI, linear, norm, tensor

QUESTION = ["USER: How would you rate the quality of this image?\n", "\nASSISTANT: The quality of the image is"]
LEVELS = ["excellent", "good", "fair", "poor", "bad"]
VISION_EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """Widths, widths inside MLPs, layers and heads of the picture encoder, the abstractor (as wide as it) and LLaMA."""

    vision: int
    vision_inner: int
    vision_layers: int
    vision_heads: int
    patch: int
    grid: int
    abstractor_inner: int
    abstractor_layers: int
    abstractor_heads: int
    queries: int
    language: int
    language_inner: int
    language_layers: int
    language_heads: int
    vocabulary: int
    eps: float = 1e-5

    @property
    def side(self):
        return self.patch * self.grid

    def config(self):
        """What of `config.json` the tensors do not say."""
        return {"num_attention_heads": self.language_heads, "rms_norm_eps": self.eps, "visual_config": {
            "visual_model": {"num_attention_heads": self.vision_heads, "layer_norm_eps": VISION_EPS},
            "visual_abstractor": {"num_attention_heads": self.abstractor_heads, "layer_norm_eps": VISION_EPS}}}


FULL = Sizes(vision=1024, vision_inner=4096, vision_layers=24, vision_heads=16, patch=14, grid=32, abstractor_inner=2816,
             abstractor_layers=6, abstractor_heads=16, queries=64, language=4096, language_inner=11008, language_layers=32,
             language_heads=32, vocabulary=32000)


def tensors(s):
    """Every tensor, as `drawn.py` lists them."""
    e, v, places = "model.vision_model.embeddings.", s.vision, s.grid * s.grid + 1
    yield from tensor(e + "cls_token", 1, 1, v, scale=1.0)
    yield from tensor(e + "position_embedding", 1, places, v, scale=0.5)
    yield from tensor(e + "patch_embed.weight", v, 3, s.patch, s.patch)
    yield from norm(e + "pre_layernorm", v)
    for i in range(s.vision_layers):
        b = f"model.vision_model.encoder.layers.{i}."
        yield from norm(b + "input_layernorm", v)
        yield from norm(b + "post_attention_layernorm", v)
        yield from linear(b + "self_attn.query_key_value", v, 3 * v)
        yield from linear(b + "self_attn.dense", v, v)
        yield from linear(b + "mlp.fc1", v, s.vision_inner)
        yield from linear(b + "mlp.fc2", s.vision_inner, v)
    yield from norm("model.vision_model.post_layernorm", v)
    a = "model.visual_abstractor."
    yield from tensor(a + "query_embeds", 1, s.queries, v, scale=1.0)
    yield from tensor(a + "vit_eos", 1, 1, s.language, scale=1.0)
    yield from linear(a + "visual_fc", v, s.language)
    for i in range(s.abstractor_layers):
        b = f"{a}encoder.layers.{i}.crossattention."
        yield from norm(b + "norm1", v)
        yield from norm(b + "normk", v)
        for part in ("query", "key", "value"):
            yield from linear(f"{b}attention.{part}", v, v)
        yield from tensor(b + "attention.q_pos_embed", s.queries, v, scale=0.7)
        yield from tensor(b + "attention.k_pos_embed", places, v, scale=0.7)
        yield from linear(b + "output.out_proj", v, v)
        yield from norm(b + "output.norm2", v)
        yield from linear(b + "output.mlp.w1", v, s.abstractor_inner)
        yield from linear(b + "output.mlp.w2", s.abstractor_inner, v)
        yield from linear(b + "output.mlp.w3", v, s.abstractor_inner)
        yield from norm(b + "output.mlp.ffn_ln", s.abstractor_inner)
    l, inner = s.language, s.language_inner
    yield from tensor("model.embed_tokens.weight", s.vocabulary, l, scale=1.0)
    yield from tensor("lm_head.weight", s.vocabulary, l)
    for i in range(s.language_layers):
        b = f"model.layers.{i}."
        yield from tensor(b + "self_attn.q_proj.weight", l, l)
        yield from tensor(b + "self_attn.o_proj.weight", l, l)
        for m in (0, 1):
            yield from tensor(f"{b}self_attn.k_proj.multiway.{m}.weight", l, l)
            yield from tensor(f"{b}self_attn.v_proj.multiway.{m}.weight", l, l)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield from tensor(f"{b}{name}.multiway.{m}.weight", l, scale=0.3, mean=1.0)
        yield from tensor(b + "mlp.gate_proj.weight", inner, l)
        yield from tensor(b + "mlp.up_proj.weight", inner, l)
        yield from tensor(b + "mlp.down_proj.weight", l, inner)
    yield from tensor("model.norm.weight", l, scale=0.3, mean=1.0)


class Mapped:
    """The weights of a folder in `dtype`, each read when it is asked for and kept by nobody."""

    def __init__(self, folder, dtype):
        self.dtype, self.files = dtype, {}
        for path in sorted(folder.glob("model*.safetensors")):
            file = safe_open(path, "pt")
            self.files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name):
        return self.files[name].get_tensor(name).to(self.dtype)

    def get(self, name):
        return self[name] if name in self.files else None

    def all(self):
        """Every tensor by name: views of the files if that is their type."""
        return {name: self[name] for name in self.files}


class Model:
    """The formulas with the weights `w`, by name, all in one type."""

    def __init__(self, w, sizes):
        self.w, self.s = w, sizes

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w[name + ".bias"], eps)

    def rms(self, name, x):
        wide = x.float()
        return self.w[name + ".weight"] * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.s.eps)).to(x.dtype)

    def see(self, pixels):
        e, s = "model.vision_model.embeddings.", self.s
        patches = self.w[e + "patch_embed.weight"]
        x = F.conv2d(pixels.to(patches.dtype), patches, stride=s.patch).flatten(2).transpose(1, 2)
        x = torch.cat([self.w[e + "cls_token"].expand(len(x), 1, -1), x], 1) + self.w[e + "position_embedding"]
        x = self.norm(e + "pre_layernorm", x, VISION_EPS)
        for i in range(s.vision_layers):
            b = f"model.vision_model.encoder.layers.{i}."
            y = self.norm(b + "input_layernorm", x, VISION_EPS)
            mixed = self.linear(b + "self_attn.query_key_value", y)
            mixed = mixed.reshape(*y.shape[:2], s.vision_heads, 3, s.vision // s.vision_heads).permute(3, 0, 2, 1, 4)
            y = F.scaled_dot_product_attention(*mixed).transpose(1, 2).flatten(2)
            x = x + self.linear(b + "self_attn.dense", y)
            y = self.linear(b + "mlp.fc1", self.norm(b + "post_attention_layernorm", x, VISION_EPS))
            x = x + self.linear(b + "mlp.fc2", y * torch.sigmoid(1.702 * y))
        return self.norm("model.vision_model.post_layernorm", x, VISION_EPS)

    def abstract(self, picture):
        a = "model.visual_abstractor."
        x = self.w[a + "query_embeds"].expand(len(picture), -1, -1)
        heads = lambda t: t.unflatten(2, (self.s.abstractor_heads, -1)).transpose(1, 2)
        for i in range(self.s.abstractor_layers):
            b = f"{a}encoder.layers.{i}.crossattention."
            x, keys = self.norm(b + "norm1", x, 1e-5), self.norm(b + "normk", picture, 1e-5)
            keys = torch.cat([x, keys], 1)
            q_pos, k_pos = self.w[b + "attention.q_pos_embed"], self.w[b + "attention.k_pos_embed"]
            k = self.linear(b + "attention.key", keys + torch.cat([q_pos, k_pos])[None])
            v = self.linear(b + "attention.value", keys)
            q = self.linear(b + "attention.query", x + q_pos[None])
            y = F.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
            x = x + self.linear(b + "output.out_proj", y)
            y = self.norm(b + "output.norm2", x, 1e-5)
            y = F.silu(self.linear(b + "output.mlp.w1", y)) * self.linear(b + "output.mlp.w3", y)
            x = x + self.linear(b + "output.mlp.w2", self.norm(b + "output.mlp.ffn_ln", y, VISION_EPS))
        x = self.linear(a + "visual_fc", x)
        return torch.cat([x, self.w[a + "vit_eos"].expand(len(x), -1, -1)], 1)

    def each(self, name, x, picture, of):
        """`of` the text's module, and of the picture's for the tokens `picture`."""
        first, last = picture.start, picture.stop
        text = of(f"{name}.multiway.0", torch.cat([x[:, :first], x[:, last:]], 1))
        return torch.cat([text[:, :first], of(f"{name}.multiway.1", x[:, picture]), text[:, first:]], 1)

    def speak(self, before, seen, after, words):
        """The logits of `words` after the last token, for each of the pictures `seen`; in f32."""
        s, head = self.s, self.w["lm_head.weight"][words]
        embed = lambda ids: F.embedding(torch.tensor(ids), self.w["model.embed_tokens.weight"]).expand(len(seen), -1, -1)
        x = torch.cat([embed(before), seen, embed(after)], 1)
        picture = slice(len(before), len(before) + seen.shape[1])
        rope = LlamaRotaryEmbedding(LlamaConfig(hidden_size=s.language, num_attention_heads=s.language_heads))
        cos, sin = rope(x, torch.arange(x.shape[1])[None])
        heads = lambda t: t.unflatten(2, (s.language_heads, -1)).transpose(1, 2)
        for i in range(s.language_layers):
            b = f"model.layers.{i}."
            y = self.each(b + "input_layernorm", x, picture, self.rms)
            q = heads(self.linear(b + "self_attn.q_proj", y))
            k = heads(self.each(b + "self_attn.k_proj", y, picture, self.linear))
            v = heads(self.each(b + "self_attn.v_proj", y, picture, self.linear))
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self.linear(b + "self_attn.o_proj", y)
            y = self.each(b + "post_attention_layernorm", x, picture, self.rms)
            y = F.silu(self.linear(b + "mlp.gate_proj", y)) * self.linear(b + "mlp.up_proj", y)
            x = x + self.linear(b + "mlp.down_proj", y)
        return F.linear(self.rms("model.norm", x[:, -1]), head).float()


def vocabulary(text, size):
    """A sentencepiece model with LLaMA's settings, of at most `size` pieces."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=out, vocab_size=size, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2)
    return out.getvalue()


class Question:
    """The ids before and after the picture, and of the words that may come next."""

    def __init__(self, spm):
        # `legacy: false` is sentencepiece's own way with each text that has no special token in it.
        self.before = [spm.bos_id()] + spm.encode(QUESTION[0])
        self.after = spm.encode(QUESTION[1])
        self.words = [spm.encode(word)[0] for word in LEVELS]
        assert len(set(self.words)) == len(self.words), self.words


def score(logits):
    """1 to 5."""
    return (torch.softmax(logits.double(), -1) @ torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64)).tolist()


def preprocessor_config(size):
    """`preprocessor_config.json`."""
    return {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": size, "resample": 3, "do_center_crop": True,
            "crop_size": size, "do_normalize": True, "image_mean": OPENAI[0], "image_std": OPENAI[1]}


def preprocess(picture, size):
    """expand2square, then CLIP's image processor."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in OPENAI[0]))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    x = torch.from_numpy(np.array(square.resize((size, size), Image.BICUBIC))).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in OPENAI)
    return (x - mean) / std
