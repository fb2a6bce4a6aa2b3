"""The proof that a GGUF file has the tokenizer of the folder it was made of.

Both encode and decode texts of many kinds. moekit's reader has to give the same; what other programs, which read GGUF's
own keys alone, would take for something else is told with an example.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moekit.checkpoint.gguf import Metadata
from moekit.core.errors import MoekitError
from moekit.data.gguf_tokenizer import GGUFTokenizer
from moekit.data.gguf_vocabulary import steps_of, unsaid
from moekit.data.tokenizers import FileTokenizer
from moekit.inference.chat_template import ChatTemplate

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
_CHAT: list[dict[str, str]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Go on."},
]


def prove_tokenizer(source: FileTokenizer, metadata: Metadata) -> list[str]:
    """Compare a folder's tokenizer with the one in the metadata of the file that was made of it.

    Returns:
        What other programs than moekit take for something else, a sentence each.

    Raises:
        MoekitError: where moekit itself would: with a short text that differs.
    """
    texts = probe_texts(source)
    written = GGUFTokenizer(metadata)
    for what, ours, theirs in _views(written, source):
        if (text := _difference(texts, ours, theirs)) is not None:
            raise MoekitError(
                f"The GGUF file would not have the tokenizer of {source.file}: {text!r} {what}; "
                "this tokenizer cannot be written."
            )
    if (written.start, written.end_tokens) != (source.start, source.end_tokens):
        raise MoekitError(f"The GGUF file would not have the start and the ends of {source.file}.")
    return [*_said_elsewhere(source, metadata, texts)]


def probe_texts(tokenizer: FileTokenizer) -> list[str]:
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


_View = tuple[str, Callable[[str], Any], Callable[[str], Any]]


def _views(written: GGUFTokenizer, source: FileTokenizer) -> Iterator[_View]:
    """Give what both do with a text: what it is called, and the two."""
    yield "becomes other tokens", written.encode, source.encode
    yield "becomes another prompt", written.encode_prompt, source.encode_prompt
    yield "becomes other tokens where nothing is special", written.encode_plain, source.encode_plain
    yield (
        "comes back from its tokens as another text",
        lambda text: written.decode(source.encode(text)),
        lambda text: source.decode(source.encode(text)),
    )


def _difference(texts: Sequence[str], ours: Callable[[str], Any], theirs: Callable[[str], Any]) -> str | None:
    """Find the first text that the two do not give the same for."""
    return next((text for text in texts if ours(text) != theirs(text)), None)


def _said_elsewhere(source: FileTokenizer, metadata: Metadata, texts: Sequence[str]) -> Iterator[str]:
    usual = GGUFTokenizer(metadata, usual_keys=True)
    text = _difference(texts, usual.encode, source.encode)
    missing = ", ".join(unsaid(source, metadata.get_as(str, "tokenizer.ggml.pre", "default")))
    if text is not None:
        yield (
            f"Other programs than moekit take some texts for other tokens, such as {text!r}: GGUF has no word for "
            f"{missing or 'how this tokenizer joins letters'}."
        )
    elif usual.encode_prompt("a") != source.encode_prompt("a"):
        yield (
            "Other programs than moekit put other special tokens around a prompt: "
            f"{usual.encode_prompt('a')} for 'a', not {source.encode_prompt('a')}."
        )
    words = source.described()["added_tokens"]
    by_id = {token["id"]: token["content"] for token in words}
    if lost := sorted(source.end_tokens - usual.end_tokens):
        named = ", ".join(repr(by_id.get(id_, id_)) for id_ in lost)
        yield f"Other programs than moekit do not end an answer at {named}: GGUF has room for three end tokens."
    if not source.end_tokens:
        yield f"{source.file.parent} names no token that ends an answer."
    yield from _rendered_elsewhere(usual, source.special_texts)


def _rendered_elsewhere(usual: GGUFTokenizer, named: Mapping[str, str]) -> Iterator[str]:
    """Tell of a chat template that says something else with the variables that other programs give it."""
    template = usual.chat_template
    if template is None or dict(usual.special_texts) == dict(named):
        return
    rendered = []
    for variables in (usual.special_texts, named):
        try:
            rendered.append(ChatTemplate(template, variables).render(_CHAT))
        except MoekitError as error:
            rendered.append(str(error))
    if rendered[0] != rendered[1]:
        differing = [name for name in named if usual.special_texts.get(name) != named[name]]
        yield (
            "Other programs than moekit render the chat template otherwise: they do not know "
            f"{', '.join(differing) or 'which special tokens it has none of'}."
        )
