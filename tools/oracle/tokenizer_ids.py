"""Awkward strings through the pipelines' tokenizers -> tests/fixtures/tokenizers.json.

Calls each tokenizer as StableDiffusion3Pipeline does. Run again whenever a tokenizer changes.
(The script may not be called tokenizers.py: it would shadow the package that transformers imports.)
"""

import json
import random

from transformers import AutoTokenizer, CLIPTokenizer

from common import FIXTURES, ROOT, quiet

FOLDERS = {"models/tiny-sd3": ["tokenizer", "tokenizer_2", "tokenizer_3"],
           "tests/fixtures/pipeline/no_t5": ["tokenizer", "tokenizer_2"]}
T5_LENGTH = 40

STRINGS = [
    "", " ", "  ", "\t", "\n", "\r\n", " \t\n ", "\u00a0", "\u3000", "\u2003", "\u200b", "\ufeff", "\u2028", "\x85",
    "\x0b\x0c", "\x1c", "\u180e", "\u1680", "\u202f", "\u205f",
    "a", "A", "!", "!!", "! !", "a!", "!a", "wow!", "hello!world", "a ! b", "?!", "?", "...", ".", ",", "-", "--", "—",
    "a red circle", "A Red Circle", "A RED CIRCLE", "a  red   circle", " a red circle ", "a\tred\ncircle", "aredcircle",
    "two blue squares", "two blue squares.", "two,blue,squares", "two blue squares!", "a photo of a red circle",
    "a red circle left of a blue square", "three green triangles above a yellow circle", "background",
    "it's", "IT'S", "It's 12 o'clock", "don't", "we've", "we're", "I'm", "she'll", "he'd", "'s", "' s", "''s", "'S",
    "it\u2019s", "'tis", "rock'n'roll", "a's b't c're d've e'm f'll g'd", "'ll'd", "'", "''", "\"", "\"quoted\"", "`",
    "0", "1", "12", "123", "1234567890", "3.14", "1,000,000", "1e-3", "a1b2c3", "2x4", "½", "²", "٣", "Ⅷ", "①", "१२३",
    "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|EndOfText|>", "<|StartOfText|>", "<|STARTOFTEXT|>",
    "a<|endoftext|>b", "a <|endoftext|> b", "<|endoftext|><|endoftext|>", "<|endoftext|> <|endoftext|>",
    "<|startoftext|>a red circle<|endoftext|>", "<|endoftext", "|endoftext|>", "<| endoftext |>", "<|endoftext|>!",
    "< |endoftext|>", "<|endoftext|>'s", "x<|startoftext|>!<|endoftext|>y",
    "</s>", "<s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", "<extra_id_100>", "a</s>b", "a </s> b", "</S>",
    "<pad><pad>", " <pad> ", "<PAD>", "a<unk>b", "<extra_id_0>red<extra_id_1>", "</s></s>", "</ s>", "[CLS]", "[MASK]",
    "▁", "▁a", "a▁red", "▁▁", " ▁ ", "_", "__", "a_red_circle", "</w>", "a</w>", "red</w>circle", "##ing",
    "é", "e\u0301", "É", "E\u0301", "ñandú", "n\u0303", "Å", "\u212b", "A\u030a", "ç", "ß", "ẞ", "STRASSE", "straße",
    "İstanbul", "ı", "I\u0307", "ǅ", "ﬁ", "ﬀ", "ſ", "K", "Ω", "Ω", "ΣΑΣ", "ὈΔΥΣΣΕΎΣ", "Σ", "ς", "naïve café", "Ǆ",
    "a\u0301\u0323", "a\u0323\u0301", "\u0301", "\u0301\u0301\u0301", "q\u0307\u0323", "Z\u0351\u036b\u0343", "가", "가",
    "한국어", "한국어", "각", "ᄀ", "日本語", "日本語のテスト", "が", "が", "ｶﾞ", "ﾊﾝｶｸ", "ＡＢＣ", "１２３", "中文测试",
    "中文 mixed 文字", "一个红色的圆圈", "漢字kanji漢字", "。", "、", "「引用」", "…", "ㄅㄆㄇ", "豈", "豈", "𠮷野家", "々",
    "العربية", "مرحبا بالعالم", "السَّلَامُ", "عَ", "ﷺ", "ﻻ", "لا", "עברית", "שָׁלוֹם", "हिन्दी", "क्ष", "ক", "தமிழ்", "ไทย", "ภาษาไทย",
    "ქართული", "ᲡᲐ", "Ꭰ", "ꭰ", "русский", "РУССКИЙ", "Й", "й", "й", "Ελληνικά", "ελληνικά", "Հայերեն", "አማርኛ",
    "🙂", "🙂🙂", "a🙂b", "🔴", "🟦🟦", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "🇫🇷🇩🇪", "❤", "❤️", "☎︎", "☎️", "1️⃣", "#️⃣", "🧑🏿‍🚀",
    "🔴 circle", "red🔴", "©", "®", "™", "№", "℃", "€100", "£5", "$5", "100%", "5°", "±", "×", "÷", "≠", "∑", "→", "♥",
    "\u200d", "a\u200db", "a\u200bb", "a\u200cb", "a\u2060b", "\u00ad", "co\u00adop", "a\u202eb", "\u200e", "\ufffd", "\ufffc",
    "a\u00a0b", "a\u2003b", "a\u3000b", "a\u2028b", "a\u2029b", "a\x85b", "a\ufeffb", "a\u180eb", "a\x0bb", "a\x1fb", "a\u1680b",
    "\x00", "a\x00b", "\x01", "\x07bell", "\x1b[31mred\x1b[0m", "\x7f", "\x80", "\x9f", "\ue000", "\uf8ff", "\ufdd0",
    "\U000e0001", "\U0001f3fb", "\U0010ffff", "\ufe0f", "\u034f", "\u115f",
    "&amp;", "&lt;b&gt;", "&quot;red&quot;", "&#39;", "&nbsp;", "&amp;amp;", "<b>bold</b>", "<br/>", "<!-- x -->",
    "a & b", "a+b=c", "x^2", "a/b\\c", "C:\\path\\file", "https://example.com/a?b=c&d=e#f", "me@example.com", "#tag",
    "@user", "{json: [1, 2]}", "(red circle:1.3)", "((red))", "[red|blue]", "red::2 blue", "--ar 16:9", "a|b", "~", "^^",
    "camelCaseWord", "snake_case", "kebab-case", "MiXeD cAsE", "ALLCAPS", "iPhone15", "GPT-4o", "x86_64", "f(x)=y",
    "a.b.c", "e.g.", "U.S.A.", "Mr. Smith", "wait...what", "yes/no", "50/50", "10:30pm", "12'6\"", "o'clock's", "'s's's",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "supercalifragilisticexpialidocious",
    "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!", "? ? ? ? ?", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    "red " * 11 + "red", "red " * 14 + "red", "red " * 29 + "red", "red " * 30 + "red", "red " * 37 + "red",
    "red " * 38 + "red", "red " * 39 + "red", "a red circle and a blue square, " * 94, "é" * 3000, "x" * 3000,
    "\n" * 3000, "🙂" * 200, "<|endoftext|>" * 50, "</s>" * 50,
]


def random_strings():
    r = random.Random(0)
    pools = ["abcdefghijklmnopqrstuvwxyz ", "aAéÉ ßẞıİ\u0301\u0308", "0123456789 .,-", "!?'\"<>|/s ", "日本가한ك ",
             "🙂🔴\u200d\ufe0f ab", "\t\n \u00a0\u3000x"]
    out = []
    for _ in range(30):
        pool = r.choice(pools) + r.choice(pools)
        out.append("".join(r.choice(pool) for _ in range(r.randrange(1, 40))))
    return out


def main():
    quiet()
    strings = list(dict.fromkeys(STRINGS + random_strings()))
    out = {"strings": strings, "tokenizers": {}}
    for folder, names in FOLDERS.items():
        for name in names:
            path = ROOT / folder / name
            if not path.exists():
                print("absent:", path)
                continue
            t5 = name == "tokenizer_3"
            tok = (AutoTokenizer if t5 else CLIPTokenizer).from_pretrained(path)
            clip_length = CLIPTokenizer.from_pretrained(ROOT / folder / "tokenizer").model_max_length
            length = T5_LENGTH if t5 else clip_length
            kw = dict(add_special_tokens=True) if t5 else {}
            ids = [tok([s], padding="max_length", max_length=length, truncation=True, return_tensors="pt", **kw)
                   .input_ids[0].tolist() for s in strings]
            assert all(len(i) == length for i in ids)
            # A batch gives each string the same ids.
            assert ids == tok(strings, padding="max_length", max_length=length, truncation=True, **kw).input_ids
            out["tokenizers"][f"{folder}/{name}"] = dict(max_length=length, ids=ids)
            j = json.loads(tok.backend_tokenizer.to_str())
            print(path.relative_to(ROOT), type(tok).__name__, len(tok), {
                k: v for k, v in j.items() if k in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")})
    rows = ",\n".join(
        json.dumps(k) + ': {"max_length": ' + str(v["max_length"]) + ', "ids": [\n'
        + ",\n".join(json.dumps(i, separators=(",", ":")) for i in v["ids"]) + "\n]}"
        for k, v in out["tokenizers"].items())
    text = ('{"strings": [\n' + ",\n".join(json.dumps(s) for s in strings) + '\n],\n"tokenizers": {\n' + rows + "\n}}\n")
    assert json.loads(text) == out
    (FIXTURES / "tokenizers.json").write_text(text)
    print(len(strings), "strings,", len(text), "bytes")


if __name__ == "__main__":
    main()
