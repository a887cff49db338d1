"""DeQA-Score's mPLUG-Owl2 at small sizes -> tests/fixtures/deqa.

No package has the model: what is here follows its authors' code (`mplug_owl2/model/{visual_encoder,modeling_llama2}.py` of
DeQA-Score), with LLaMA's rotary embedding, norm and MLP by transformers. `tensors.json` lists the weights, whose numbers follow from
their names as in `imagereward.py`; `tokenizer.model` is a small vocabulary by sentencepiece with LLaMA's settings; `io.json` has
texts, their ids by transformers' LlamaTokenizer where there is one (`legacy: false`), the five words and the scores.
"""

import io as bytesio
import json

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from common import FIXTURES, Listed, uniform

V, V_INNER, V_LAYERS, V_HEADS, PATCH, GRID = 64, 96, 2, 4, 4, 4
A_INNER, A_LAYERS, A_HEADS, QUERIES = 48, 2, 2, 5
L, L_INNER, L_LAYERS, L_HEADS, EPS = 96, 128, 2, 3, 1e-5
VOCABULARY = 420
QUESTION = ["USER: How would you rate the quality of this image?\n", "\nASSISTANT: The quality of the image is"]
LEVELS = ["excellent", "good", "fair", "poor", "bad"]
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
TEXTS = QUESTION + LEVELS + ["", " ", "  two  spaces ", "a\nb", "Émile 中 \U0001f600", "aaaaaaaa", "image image", "USER:ASSISTANT"]
FOLDER = FIXTURES / "deqa"
FOLDER.mkdir(parents=True, exist_ok=True)
listed = Listed()
tensor, linear, norm = listed.tensor, listed.linear, listed.norm


def vocabulary():
    out = bytesio.BytesIO()
    text = QUESTION + LEVELS * 3 + ["how good or bad is the quality of an excellent image, poor or fair?", "the user rates this image"] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=out, vocab_size=VOCABULARY, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2)
    (FOLDER / "tokenizer.model").write_bytes(out.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def weights(vocabulary):
    e = "model.vision_model.embeddings."
    w = tensor(e + "cls_token", 1, 1, V, scale=1.0) | tensor(e + "position_embedding", 1, GRID * GRID + 1, V, scale=0.5)
    w |= tensor(e + "patch_embed.weight", V, 3, PATCH, PATCH) | norm(e + "pre_layernorm", V)
    for i in range(V_LAYERS):
        b = f"model.vision_model.encoder.layers.{i}."
        w |= norm(b + "input_layernorm", V) | norm(b + "post_attention_layernorm", V)
        w |= linear(b + "self_attn.query_key_value", V, 3 * V) | linear(b + "self_attn.dense", V, V)
        w |= linear(b + "mlp.fc1", V, V_INNER) | linear(b + "mlp.fc2", V_INNER, V)
    w |= norm("model.vision_model.post_layernorm", V)
    a = "model.visual_abstractor."
    w |= tensor(a + "query_embeds", 1, QUERIES, V, scale=1.0) | tensor(a + "vit_eos", 1, 1, L, scale=1.0) | linear(a + "visual_fc", V, L)
    for i in range(A_LAYERS):
        b = f"{a}encoder.layers.{i}.crossattention."
        w |= norm(b + "norm1", V) | norm(b + "normk", V)
        for part in ("query", "key", "value"):
            w |= linear(f"{b}attention.{part}", V, V)
        w |= tensor(b + "attention.q_pos_embed", QUERIES, V, scale=0.7)
        w |= tensor(b + "attention.k_pos_embed", GRID * GRID + 1, V, scale=0.7)
        w |= linear(b + "output.out_proj", V, V) | norm(b + "output.norm2", V)
        w |= linear(b + "output.mlp.w1", V, A_INNER) | linear(b + "output.mlp.w2", A_INNER, V)
        w |= linear(b + "output.mlp.w3", V, A_INNER) | norm(b + "output.mlp.ffn_ln", A_INNER)
    w |= tensor("model.embed_tokens.weight", vocabulary, L, scale=1.0) | tensor("lm_head.weight", vocabulary, L)
    for i in range(L_LAYERS):
        b = f"model.layers.{i}."
        w |= tensor(b + "self_attn.q_proj.weight", L, L) | tensor(b + "self_attn.o_proj.weight", L, L)
        for m in (0, 1):
            w |= tensor(f"{b}self_attn.k_proj.multiway.{m}.weight", L, L)
            w |= tensor(f"{b}self_attn.v_proj.multiway.{m}.weight", L, L)
            for name in ("input_layernorm", "post_attention_layernorm"):
                w |= tensor(f"{b}{name}.multiway.{m}.weight", L, scale=0.3, mean=1.0)
        w |= tensor(b + "mlp.gate_proj.weight", L_INNER, L) | tensor(b + "mlp.up_proj.weight", L_INNER, L)
        w |= tensor(b + "mlp.down_proj.weight", L, L_INNER)
    w |= tensor("model.norm.weight", L, scale=0.3, mean=1.0)
    return w


class Model:
    def __init__(self, w):
        self.w = w

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w[name + ".bias"], eps)

    def rms(self, name, x):
        return self.w[name + ".weight"] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))

    def see(self, pixels):
        e = "model.vision_model.embeddings."
        x = F.conv2d(pixels, self.w[e + "patch_embed.weight"], stride=PATCH).flatten(2).transpose(1, 2)
        x = torch.cat([self.w[e + "cls_token"].expand(len(x), 1, -1), x], 1) + self.w[e + "position_embedding"]
        x = self.norm(e + "pre_layernorm", x, 1e-6)
        for i in range(V_LAYERS):
            b = f"model.vision_model.encoder.layers.{i}."
            y = self.norm(b + "input_layernorm", x, 1e-6)
            mixed = self.linear(b + "self_attn.query_key_value", y)
            mixed = mixed.reshape(*y.shape[:2], V_HEADS, 3, V // V_HEADS).permute(3, 0, 2, 1, 4)
            y = F.scaled_dot_product_attention(*mixed).transpose(1, 2).flatten(2)
            x = x + self.linear(b + "self_attn.dense", y)
            y = self.linear(b + "mlp.fc1", self.norm(b + "post_attention_layernorm", x, 1e-6))
            x = x + self.linear(b + "mlp.fc2", y * torch.sigmoid(1.702 * y))
        return self.norm("model.vision_model.post_layernorm", x, 1e-6)

    def abstract(self, picture):
        a = "model.visual_abstractor."
        x = self.w[a + "query_embeds"].expand(len(picture), -1, -1)
        heads = lambda t: t.unflatten(2, (A_HEADS, -1)).transpose(1, 2)
        for i in range(A_LAYERS):
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
            x = x + self.linear(b + "output.mlp.w2", self.norm(b + "output.mlp.ffn_ln", y, 1e-6))
        x = self.linear(a + "visual_fc", x)
        return torch.cat([x, self.w[a + "vit_eos"].expand(len(x), -1, -1)], 1)

    def each(self, name, x, is_picture, of):
        return torch.where(is_picture[None, :, None], of(f"{name}.multiway.1", x), of(f"{name}.multiway.0", x))

    def speak(self, before, seen, after):
        """The logits after the last token."""
        embed = lambda ids: self.w["model.embed_tokens.weight"][torch.tensor(ids)][None]
        x = torch.cat([embed(before), seen, embed(after)], 1)
        is_picture = torch.zeros(x.shape[1], dtype=torch.bool)
        is_picture[len(before):len(before) + seen.shape[1]] = True
        rope = LlamaRotaryEmbedding(LlamaConfig(hidden_size=L, num_attention_heads=L_HEADS))
        cos, sin = rope(x, torch.arange(x.shape[1])[None])
        heads = lambda t: t.unflatten(2, (L_HEADS, -1)).transpose(1, 2)
        for i in range(L_LAYERS):
            b = f"model.layers.{i}."
            y = self.each(b + "input_layernorm", x, is_picture, self.rms)
            q = heads(self.linear(b + "self_attn.q_proj", y))
            k = heads(self.each(b + "self_attn.k_proj", y, is_picture, self.linear))
            v = heads(self.each(b + "self_attn.v_proj", y, is_picture, self.linear))
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self.linear(b + "self_attn.o_proj", y)
            y = self.each(b + "post_attention_layernorm", x, is_picture, self.rms)
            y = F.silu(self.linear(b + "mlp.gate_proj", y)) * self.linear(b + "mlp.up_proj", y)
            x = x + self.linear(b + "mlp.down_proj", y)
        return self.linear("lm_head", self.rms("model.norm", x[:, -1]))[0]


def preprocess(picture):
    """expand2square, then CLIP's image processor."""
    side, size = max(picture.size), PATCH * GRID
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in OPENAI[0]))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    x = torch.from_numpy(np.array(square.resize((size, size), Image.BICUBIC))).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in OPENAI)
    return (x - mean) / std


@torch.no_grad()
def main():
    spm = vocabulary()
    # `legacy: false` is sentencepiece's own way with each text that has no special token in it.
    encode = lambda text: spm.encode(text)
    count = spm.get_piece_size()
    model = Model(weights(count))
    before, after = [spm.bos_id()] + encode(QUESTION[0]), encode(QUESTION[1])
    words = [encode(word)[0] for word in LEVELS]
    assert len(set(words)) == len(words), words
    io, scores = {}, []
    for i, (width, height) in enumerate([(20, 20), (31, 14), (9, 24)]):
        values = (uniform(f"deqa picture {i}", width * height * 3) * 128 + 128).astype(np.uint8).reshape(height, width, 3)
        io[f"{i}.image"] = torch.from_numpy(values)
        pixels = preprocess(Image.fromarray(values))[None]
        seen = model.abstract(model.see(pixels))
        logits = model.speak(before, seen, after)[words]
        io |= {f"{i}.pixel_values": pixels, f"{i}.seen": seen, f"{i}.logits": logits[None]}
        scores.append((torch.softmax(logits, 0) @ torch.tensor([5.0, 4, 3, 2, 1])).item())
    print(scores, count, words, [spm.id_to_piece(w) for w in words], [spm.id_to_piece(p) for p in after])
    save_file({k: v.contiguous() for k, v in io.items()}, FOLDER / "io.safetensors")
    listed.write(FOLDER / "tensors.json")
    config = {"num_attention_heads": L_HEADS, "rms_norm_eps": EPS, "visual_config": {
        "visual_model": {"num_attention_heads": V_HEADS, "layer_norm_eps": 1e-6},
        "visual_abstractor": {"num_attention_heads": A_HEADS, "layer_norm_eps": 1e-6}}}
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    io = {"texts": TEXTS, "ids": [encode(text) for text in TEXTS], "begin": spm.bos_id(), "before": before, "after": after,
          "words": words, "scores": scores}
    (FOLDER / "io.json").write_text(json.dumps(io) + "\n")


if __name__ == "__main__":
    main()
