"""The tiny models' tokenizers, built from the captions alone and without a network.

The CLIP vocabulary is laid out as OpenAI's is: 256 byte symbols, the same 256 with "</w>", the merges' results, then
<|startoftext|> and <|endoftext|>, so "!" has id 0 and end-of-text the largest id. Any string tokenises; each word of
the captions is one token. The T5 vocabulary is a Unigram model with <pad> </s> <unk> first, one piece per caption word
and single characters for everything else.
"""

import json
import math
from collections import Counter

from transformers import CLIPTokenizer, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

START, END = "<|startoftext|>", "<|endoftext|>"
# As long as the longest caption, with start and end.
CLIP_LENGTH = 10
T5_LENGTH = 256


def bpe_merges(words):
    """Byte-pair merges, most frequent pair first, until every word (a Counter) is one symbol."""
    split = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges = []
    while True:
        pairs = Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for parts in split.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1


def save_clip_tokenizer(folder, captions, pad):
    """Write the files of SD3.5's CLIP tokenizer folders and return the tokenizer read back from them."""
    words = Counter(w for c in captions for w in c.split())
    merges = bpe_merges(words)
    symbols = list(bytes_to_unicode().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {t: i for i, t in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    write_json(folder / "special_tokens_map.json", special)
    config = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": CLIP_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    write_json(folder / "tokenizer_config.json", config)
    return CLIPTokenizer.from_pretrained(folder)


def save_t5_tokenizer(folder, captions):
    """Write the T5 tokenizer and return it read back."""
    words = Counter(w for c in captions for w in c.split())
    total = sum(words.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁" + w, math.log(n / total)) for w, n in sorted(words.items(), key=lambda kv: (-kv[1], kv[0]))]
    # Rarer than any word, so that characters serve only for text outside the captions.
    pieces.append(("▁", -12.0))
    pieces += [(chr(c), -13.0) for c in range(33, 127)]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH).save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


def write_json(path, value):
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
