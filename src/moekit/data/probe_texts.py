"""Texts on which two tokenizers are told apart: what is known to become other tokens where one is not the other."""

import random

from moekit.data.gguf_tokenizer import GGUFTokenizer
from moekit.data.gguf_vocabulary import steps_of
from moekit.data.tokenizers import FileTokenizer

_PIECES = [
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\x00", "\x1f"),
    *("the", "The", " a", "it's", "they'LL", "don\u2019t", "HTTPServer", "camelCase", "snake_case", "\u01c5ungla"),
    *("0", "7", "42", "123", "1234", "1234567", "3.14", "\u0663\u0664", "\u00bd", "\u2167", "\u00b2"),
    *("caf\u00e9", "cafe\u0301", "Zwo\u0308lf", "\u212bngstr\u00f6m", "\ufb01ne", "\uff21\uff11", "\u1e9b\u0323"),
    *("\u4e2d\u6587\u5b57", "\u30c6\u30b9\u30c8", "\ud55c\uad6d", "\u0e20\u0e32\u0e29", "\u0627\u0644", "\u0939\u093f"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\ue0a0", "\U000e0041"),
    *("def f(x):", "    return x**2", "==", "!=", "->", "//", "...", "<|", "|>", "$+=^~|`", "#!/bin/sh", "{{ x }}"),
    *("\u2581", "<0x0A>", "\u0120", "\u0130", "\u2014", "\u2026", "\u3002", "\uff01", "word", "x", "A", "."),
]
_TEXTS = (
    "",
    " ",
    "  ",
    "\n",
    " leading",
    "   leading",
    "trailing ",
    "trailing   ",
    "two  spaces   three",
    "\n\nlines\n\n\nmore\n",
    "The quick brown fox jumps over the lazy dog, 1234567 times.",
    "cafe\u0301 and caf\u00e9",
    "if x:\n    for i in range(10):\n\t\tprint(i)  # \u00fc\n",
)
_RANDOM_TEXTS, _TOKENS, _ADDED = 400, 2000, 300
_SEED = 0


def probe_texts(tokenizer: FileTokenizer | GGUFTokenizer) -> list[str]:
    """Draw texts that tokenizers are known to differ on: with every added token, alone and inside words.

    Specials, spaces at all places, digits, decomposed letters, emoji, code, and tokens of the vocabulary.
    """
    draw = random.Random(_SEED)
    described = tokenizer.described()
    added = [token["content"] for token in described["added_tokens"]]
    replaced = [step["pattern"].get("String", "") for step in steps_of(described) if step["type"] == "Replace"]
    added = added if len(added) <= _ADDED else added[:: len(added) // _ADDED]
    found = [*_TEXTS, *_PIECES]
    for word in [*added, *replaced]:
        found += [word, f"a{word}b", f"a {word} b", f" {word} ", f"\n{word}\n", f"{word}{word}", f"x  {word}  y"]
        found += [word.upper(), word.lower(), f"{word[:-1]} {word[-1:]}"]
    pieces = [*_PIECES, *draw.sample(added, min(len(added), 20))]
    found += ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(_RANDOM_TEXTS)]
    size = tokenizer.vocab_size
    ids = sorted(draw.sample(range(size), min(size, _TOKENS)))
    found += [tokenizer.decode([id_]) for id_ in ids]
    found += [tokenizer.decode(draw.choices(ids, k=8)) for _ in range(_RANDOM_TEXTS // 4)]
    return sorted(dict.fromkeys(found), key=lambda text: (not text.isprintable() or text.isspace(), len(text)))
