"""ImageReward (`blip.py`) at small sizes by transformers' BLIP -> tests/fixtures/imagereward.

`tensors.json` lists what is in its file, under ImageReward's own names; the numbers follow from the names (`common.uniform`, times
`scale`, plus `mean`). `vocab.txt` is a small vocabulary of BERT. `io.safetensors` has pictures and what becomes of them, `io.json`
the prompts, their ids and the scores.
"""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizer

import blip
from common import FIXTURES, Listed, uniform

SIZES = blip.Sizes(vision=128, vision_inner=192, vision_layers=2, patch=16, grid=3, text=128, text_inner=160, text_layers=2,
                   positions=24, projected=8, head=(128, 48, 12, 16, 8, 1))
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


@torch.no_grad()
def main():
    tokenizer, listed, w = vocabulary(), Listed(), {}
    for listed_as in blip.tensors(SIZES, len(PIECES) + 2):
        w |= listed.tensor(*listed_as)
    vision, text = blip.networks(w, SIZES, len(PIECES) + 2)
    io, scores = {}, []
    sizes = [(60, 50), (48, 48), (37, 51), (51, 48)]
    for i, (prompt, (width, height)) in enumerate(zip(PROMPTS, sizes)):
        values = (uniform(f"picture {i}", width * height * 3) * 128 + 128).astype(np.uint8).reshape(height, width, 3)
        io[f"{i}.image"] = torch.from_numpy(values)
        pixels = blip.preprocess(Image.fromarray(values), SIZES.side)
        io[f"{i}.pixel_values"] = pixels.contiguous()
        row, mask = (torch.tensor([x]) for x in ids(tokenizer, prompt))
        tokens, first, value = blip.read(w, vision, text, pixels[None], row, mask)
        io |= {f"{i}.tokens": tokens[0], f"{i}.cls": first[0]}
        scores += value.tolist()
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
