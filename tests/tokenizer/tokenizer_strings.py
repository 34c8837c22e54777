"""Many kinds of strings, the same ones for every run."""

from __future__ import annotations

import random

SCRIPTS = [
    "The quick brown fox jumps over the lazy dog. ",
    "Größe, façade, naïve, señor, Þórr, œuvre ",
    "Привет, как дела? Съешь ещё этих булок ",
    "你好，世界。今天天气很好！繁體中文 ",
    "こんにちは、元気ですか？カタカナ ",
    "안녕하세요 세계 ",
    "مرحبا بالعالم כתב עברי ",
    "नमस्ते दुनिया ไทยภาษา தமிழ் ",
    "Ελληνικά ἀρχή Հայերեն ქართული አማርኛ ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 🀄 ﬁ ﷺ ㍿ Ⅳ ½ ",
]
EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣", "🧑🏿‍🚀", "\U0001faf6", "☠"]
COMBINING = ["e\u0301", "a\u0308\u0323", "Z͑ͫ̓a̴l̶g͠o", "\u0301", "ก็", "각", "각"]
SPACES = [" ", "  ", "   ", "\t", "\t\t", "\u00a0", "\u2003", "\u3000", "\u200b", "\u202f", "▁", "▁▁", " ▁ ", "\ufeff"]
NEWLINES = ["\n", "\n\n", "\r\n", "\r", "\n \n", "\v", "\f", "\x85", "\u2028", "\u2029"]
CONTROLS = [
    "\x00",
    "\x01",
    "\x07",
    "\x08",
    "\x1b[31m",
    "\x7f",
    "\x9b",
    "\u202e",
    "\u2066",
    "\ufffd",
    "\uffff",
    "\ue000",
]
CODE = [
    "def f(x):\n    return x**2  # square\n",
    'if (a && b) { printf("%d\\n", c[i++]); }',
    "SELECT * FROM t WHERE x >= 10;",
    "<div class='a'>&nbsp;</div>",
    "for i in range(10):\n\tprint(i)\n",
    "https://example.org/a?b=c&d=%20#e",
    "x = {'a': [1, 2.5e-3], \"b\": None}",
    "\\frac{1}{2} \\alpha_{i}^{2}",
]
NUMBERS = ["0", "12345678901234567", "3.14159", "-1e-10", "1,000,000", "0xDEADBEEF", "٣٤٥", "①②", "2026-11-23T15:38"]
LOOKALIKES = [
    "<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<|im_end", "|im_end|>", "<|endoftext|>",
    "<|eot_id|>", "<|start_header_id|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "[INST]", "[/INST]",
    "<<SYS>>", "<</SYS>>", "<|user|>", "<|end|>", "<think>", "</think>", "<0x0A>", "<0xE2>", "< s>",
    "<s", "</s", "<|", "|>", "<tool>",
]  # fmt: skip
CONTRACTIONS = ["I'm", "we'll", "They'VE", "don't", "O'Neil's", "'s", "''", "it’s"]
POOLS = [EMOJI, COMBINING, SPACES, NEWLINES, CONTROLS, CODE, NUMBERS, LOOKALIKES, CONTRACTIONS, SCRIPTS]


def _character(rng: random.Random) -> str:
    limit = rng.choice([0x7F, 0xFF, 0x7FF, 0xFFFF, 0x10FFFF])
    while True:
        code = rng.randint(0, limit)
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)


def _words(rng: random.Random) -> str:
    text = rng.choice(SCRIPTS)
    begin = rng.randrange(len(text))
    return text[begin : begin + rng.randint(1, 30)]


def strings(count: int, seed: int = 20261123) -> list[str]:
    """`count` strings: every entry of every pool alone, then seeded mixtures of all kinds."""
    rng = random.Random(seed)
    made = ["", *[entry for pool in POOLS for entry in pool]]
    while len(made) < count:
        kind = rng.random()
        if kind < 0.1:
            made.append("".join(_character(rng) for _ in range(rng.randint(1, 40))))
        elif kind < 0.2:
            made.append(rng.choice([" ", "\n", "\t", "a", "=", "-", "🙂", "\r\n", "0"]) * rng.randint(1, 70))
        elif kind < 0.3:
            made.append("".join(rng.choice(LOOKALIKES + SPACES + NEWLINES) for _ in range(rng.randint(1, 12))))
        else:
            pieces = [
                _words(rng) if rng.random() < 0.5 else rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(1, 12))
            ]
            made.append(rng.choice(["", "", " "]).join(pieces))
    return made[:count]
