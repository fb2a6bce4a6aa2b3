"""The tokenizer of a folder as metadata of a GGUF file."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moekit.checkpoint.gguf import Written
from moekit.core.errors import UsageError
from moekit.data.gguf_exact_tokenizer import KEY as EXACT_KEY
from moekit.data.gguf_exact_tokenizer import ExactTokenizer
from moekit.data.gguf_merges import KEY, merges_of_scores, scores_of_merges
from moekit.data.gguf_pre_tokenizers import PRE_TOKENIZERS, name_of, steps_within
from moekit.data.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from moekit.data.tokenizer_files import read_chat_templates
from moekit.data.tokenizers import FileTokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_NAMED = {
    "sep_token": "seperator_token_id",  # so spelled in the format
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
# Steps that GGUF's keys say, or that follow from the name of the pre-tokenizer.
_SAID_OF_BYTES = {"ByteLevel", "Split", "Digits", "Punctuation"}
_SAID_OF_PIECES = {"Prepend", "Replace", "Metaspace", "Precompiled", "Strip"}
_WAY_ON = "`moekit generate` runs the folder itself, with --quantize in a type of few bits"


def tokenizer_metadata(tokenizer: FileTokenizer, vocab_size: int) -> dict[str, Written]:
    """Make the keys for a folder's tokenizer.

    Args:
        tokenizer: the folder's.
        vocab_size: the model's; ids that the tokenizer does not use become unused tokens.

    Raises:
        UsageError: where GGUF has no word for the tokenizer, or its ids would not all be tokens of the model.
        MoekitError: where a file beside it cannot be read.
    """
    described, file = tokenizer.described(), tokenizer.file
    model = described["model"]
    ids = _ids(described)
    if any(not 0 <= id_ < vocab_size for id_ in ids.values()):
        raise UsageError(f"{file} has ids up to {max(ids.values()):,}, and the model beside it {vocab_size:,} tokens.")
    words, kinds = _vocabulary(described, ids, vocab_size)
    match model["type"]:
        case "BPE" if model.get("byte_fallback"):
            keys = _byte_fallback(described, words, kinds, file)
        case "BPE":
            keys = _byte_level(described, file)
        case "Unigram":
            keys = _unigram(described, words)
        case kind:
            raise UsageError(f"{file} is a tokenizer of the kind {kind!r}, which GGUF has no decoder for; {_WAY_ON}.")
    keys |= {f"{KEY}.tokens": words, f"{KEY}.token_type": kinds}
    if UNKNOWN in kinds:
        keys[f"{KEY}.unknown_token_id"] = kinds.index(UNKNOWN)
    return keys | _special(tokenizer, words) | {EXACT_KEY: _exact(tokenizer, described).written()}


def chat_template_metadata(folder: Path) -> dict[str, Written]:
    """Make the keys for a folder's chat templates: the usual one, and others by their names.

    Raises:
        MoekitError: where a file cannot be read.
    """
    templates = read_chat_templates(folder)
    others = {name: text for name, text in templates.items() if name != "default"}
    found: dict[str, Written] = {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    if others:
        found["tokenizer.chat_templates"] = list(others)
    if "default" in templates:
        found["tokenizer.chat_template"] = templates["default"]
    return found


def _ids(described: Mapping[str, Any]) -> dict[str, int]:
    """Find every token's id by its text: the model's own and those added."""
    vocabulary = described["model"]["vocab"]
    own = {word: id_ for id_, (word, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else dict(vocabulary)
    return own | {token["content"]: token["id"] for token in described["added_tokens"]}


def _vocabulary(described: Mapping[str, Any], ids: Mapping[str, int], vocab_size: int) -> tuple[list[str], list[int]]:
    """Give every token's text and kind, by its id."""
    model = described["model"]
    words = [f"[PAD{id_}]" if f"[PAD{id_}]" not in ids else f"[UNUSED{id_}]" for id_ in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    has_bytes = model["type"] == "Unigram" or model.get("byte_fallback")
    for word, id_ in ids.items():
        words[id_], kinds[id_] = word, BYTE if has_bytes and _BYTE_TOKEN.fullmatch(word) else NORMAL
    for token in described["added_tokens"]:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = model.get("unk_id") if model["type"] == "Unigram" else ids.get(model.get("unk_token"))
    if unknown is not None:
        kinds[unknown] = UNKNOWN
    return words, kinds


def _byte_level(described: Mapping[str, Any], file: Path) -> dict[str, Written]:
    whole_words_first = bool(described["model"].get("ignore_merges"))
    pre = name_of(described.get("pre_tokenizer"), whole_words_first=whole_words_first)
    if pre is None:
        raise UsageError(f"{file} cuts texts in a way that GGUF files have no name for; {_WAY_ON}.")
    return {
        f"{KEY}.model": "gpt2",
        f"{KEY}.pre": pre,
        f"{KEY}.merges": _joined(_merges(described), file),
    }


def _byte_fallback(described: Mapping[str, Any], words: list[str], kinds: list[int], file: Path) -> dict[str, Written]:
    """Describe a tokenizer of SentencePiece's kind by scores, and by merges where these say more."""
    merges = _merges(described)
    scores = scores_of_merges(merges, words)
    outside = _outside(described)
    own = [UNUSED if id_ in outside else kind for id_, kind in enumerate(kinds)]
    keys: dict[str, Written] = {
        f"{KEY}.model": "llama",
        f"{KEY}.pre": "default",
        f"{KEY}.scores": scores,
        f"{KEY}.add_space_prefix": _is_prefixed(described),
    }
    if merges_of_scores(scores, words, own, (NORMAL, USER_DEFINED)) != merges:
        keys[f"{KEY}.merges"] = _joined(merges, file)
    return keys


def _unigram(described: Mapping[str, Any], words: list[str]) -> dict[str, Written]:
    scores = dict(enumerate(score for _, score in described["model"]["vocab"]))
    keys: dict[str, Written] = {
        f"{KEY}.model": "t5",
        f"{KEY}.pre": "default",
        f"{KEY}.scores": [float(scores.get(id_, 0.0)) for id_ in range(len(words))],
        f"{KEY}.add_space_prefix": _is_prefixed(described),
        f"{KEY}.remove_extra_whitespaces": _joins_spaces(described),
    }
    charsmap = next(
        (step["precompiled_charsmap"] for step in steps_of(described) if step["type"] == "Precompiled"), None
    )
    if charsmap:
        keys[f"{KEY}.precompiled_charsmap"] = base64.b64decode(charsmap)
    return keys


def _special(tokenizer: FileTokenizer, words: Sequence[str]) -> dict[str, Written]:
    """Give the ids of special tokens, and which of them stand around a text.

    GGUF has room for three ends: of a text, of a turn, and of a message.
    """
    ids = {word: id_ for id_, word in enumerate(words)}
    named = {name: ids[word] for name, word in tokenizer.special_texts.items() if word in ids}
    found: dict[str, Written] = {f"{KEY}.{key}": named[name] for name, key in _NAMED.items() if name in named}
    before, after = _around(tokenizer)
    start = named.get("bos_token", before[0] if before else tokenizer.start)
    ends = [*[id_ for name, id_ in named.items() if name == "eos_token"], *sorted(tokenizer.end_tokens)]
    ends = [id_ for id_ in dict.fromkeys(ends) if id_ < len(words)]
    if start is not None and start < len(words):
        found[f"{KEY}.bos_token_id"] = start
    for name, id_ in zip(("eos", "eot", "eom"), ends, strict=False):
        found[f"{KEY}.{name}_token_id"] = id_
    found[f"{KEY}.add_bos_token"] = bool(before) and before[0] == start
    found[f"{KEY}.add_eos_token"] = bool(after) and after[-1:] == ends[:1]
    return found


def _around(tokenizer: FileTokenizer) -> tuple[list[int], list[int]]:
    """Find the special tokens before and after a prompt."""
    text, prompt = tokenizer.encode("a"), tokenizer.encode_prompt("a")
    for begin in range(len(prompt) - len(text) + 1):
        if prompt[begin : begin + len(text)] == text:
            return prompt[:begin], prompt[begin + len(text) :]
    return [], []


def _exact(tokenizer: FileTokenizer, described: Mapping[str, Any]) -> ExactTokenizer:
    """Say of a tokenizer what GGUF's own keys do not."""
    model = dict(described["model"])
    vocabulary = model.pop("vocab")
    model.pop("merges", None)
    scores = [score for _, score in vocabulary] if isinstance(vocabulary, list) else []
    is_rounded = any(float(np.float32(score)) != score for score in scores)
    return ExactTokenizer(
        steps={**described, "model": model},
        outside=_outside(described),
        scores=scores if is_rounded else None,
        start=tokenizer.start,
        end_tokens=tokenizer.end_tokens,
        special_texts=tokenizer.special_texts,
    )


def _outside(described: Mapping[str, Any]) -> frozenset[int]:
    """Find the added tokens that are none of the model's own."""
    vocabulary = described["model"]["vocab"]
    own = {word for word, _ in vocabulary} if isinstance(vocabulary, list) else vocabulary
    return frozenset(token["id"] for token in described["added_tokens"] if token["content"] not in own)


def _merges(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Read the pairs to merge: old files have a text for each pair, newer ones a list."""
    found = described["model"].get("merges") or []
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in found]
    return [(left, right) for left, right in pairs]


def _joined(merges: Sequence[tuple[str, str]], file: Path) -> list[str]:
    if any(" " in left or " " in right for left, right in merges):
        raise UsageError(f"{file} merges tokens with spaces in them, which GGUF files cannot list; {_WAY_ON}.")
    return [" ".join(pair) for pair in merges]


def steps_of(described: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give the steps that a tokenizer.json takes before its model, in their order."""
    yield from steps_within(described.get("normalizer"))
    yield from steps_within(described.get("pre_tokenizer"))


def _is_prefixed(described: Mapping[str, Any]) -> bool:
    """Tell whether a step puts a space before a text."""
    return any(
        step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never" for step in steps_of(described)
    )


def _joins_spaces(described: Mapping[str, Any]) -> bool:
    """Tell whether a step makes one space of several."""
    patterns = [step["pattern"].get("Regex", "") for step in steps_of(described) if step["type"] == "Replace"]
    return any(pattern.startswith((" {2,}", r"\s+", " +")) for pattern in patterns)


def unsaid(tokenizer: FileTokenizer, pre: str) -> list[str]:
    """Name what the tokenizer does and GGUF's own keys have no word for, a few words each.

    pre: the name of the pre-tokenizer that is written.
    """
    described = tokenizer.described()
    model, added = described["model"], described["added_tokens"]
    said = _SAID_OF_PIECES if model["type"] == "Unigram" or model.get("byte_fallback") else _SAID_OF_BYTES
    found = [f"its step {step['type']}" for step in steps_of(described) if step["type"] not in said]
    found += ["a space before a text" for step in steps_of(described) if step.get("add_prefix_space")]
    schemes = [step["prepend_scheme"] for step in steps_of(described) if step.get("prepend_scheme", "never") != "never"]
    found += [f"a space before a text by the scheme {scheme!r}" for scheme in schemes]
    if bool(model.get("ignore_merges")) is not PRE_TOKENIZERS[pre].whole_words_first:
        found.append("ignore_merges")
    if model["type"] == "Unigram" and model.get("byte_fallback"):
        found.append("bytes in place of unknown letters")
    for flag in ("lstrip", "rstrip", "single_word", "normalized"):
        words = [token["content"] for token in added if token[flag]]
        if words:
            found.append(f"{flag} of {words[0]!r}" + (f" and {len(words) - 1} more" if len(words) > 1 else ""))
    return list(dict.fromkeys(found))
