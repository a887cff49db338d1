"""DeQA-Score's mPLUG-Owl2 (`owl.py`) at small sizes -> tests/fixtures/deqa.

`tensors.json` lists the weights, whose numbers follow from their names as in `imagereward.py`; `tokenizer.model` is a small
vocabulary by sentencepiece with LLaMA's settings; `io.json` has texts, their ids by sentencepiece, the five words and the scores.
"""

import json

import numpy as np
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file

import owl
from common import FIXTURES, Listed, uniform

SIZES = owl.Sizes(vision=64, vision_inner=96, vision_layers=2, vision_heads=4, patch=4, grid=4, abstractor_inner=48,
                  abstractor_layers=2, abstractor_heads=2, queries=5, language=96, language_inner=128, language_layers=2,
                  language_heads=3, vocabulary=420)
TEXTS = owl.QUESTION + owl.LEVELS + ["", " ", "  two  spaces ", "a\nb", "Émile 中 \U0001f600", "aaaaaaaa", "image image", "USER:ASSISTANT"]
FOLDER = FIXTURES / "deqa"
FOLDER.mkdir(parents=True, exist_ok=True)


def vocabulary():
    text = owl.QUESTION + owl.LEVELS * 3
    text += ["how good or bad is the quality of an excellent image, poor or fair?", "the user rates this image"] * 3
    proto = owl.vocabulary(text, SIZES.vocabulary)
    (FOLDER / "tokenizer.model").write_bytes(proto)
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


@torch.no_grad()
def main():
    spm, listed, w = vocabulary(), Listed(), {}
    assert spm.get_piece_size() == SIZES.vocabulary
    for listed_as in owl.tensors(SIZES):
        w |= listed.tensor(*listed_as)
    model, question = owl.Model(w, SIZES), owl.Question(spm)
    io, scores = {}, []
    for i, (width, height) in enumerate([(20, 20), (31, 14), (9, 24)]):
        values = (uniform(f"deqa picture {i}", width * height * 3) * 128 + 128).astype(np.uint8).reshape(height, width, 3)
        io[f"{i}.image"] = torch.from_numpy(values)
        pixels = owl.preprocess(Image.fromarray(values), SIZES.side)[None]
        seen = model.abstract(model.see(pixels))
        logits = model.speak(question.before, seen, question.after, question.words)
        io |= {f"{i}.pixel_values": pixels, f"{i}.seen": seen, f"{i}.logits": logits}
        scores += owl.score(logits)
    print(scores, [spm.id_to_piece(w) for w in question.words], [spm.id_to_piece(p) for p in question.after])
    save_file({k: v.contiguous() for k, v in io.items()}, FOLDER / "io.safetensors")
    listed.write(FOLDER / "tensors.json")
    (FOLDER / "config.json").write_text(json.dumps(SIZES.config(), indent=2) + "\n")
    io = {"texts": TEXTS, "ids": [spm.encode(text) for text in TEXTS], "begin": spm.bos_id(), "before": question.before,
          "after": question.after, "words": question.words, "scores": scores}
    (FOLDER / "io.json").write_text(json.dumps(io) + "\n")


if __name__ == "__main__":
    main()
