"""The tokenizer of a folder as metadata of a GGUF file."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Rust

from moekit.checkpoint.gguf import Written
from moekit.core.errors import MoekitError, UsageError
from moekit.data.gguf_pre_tokenizers import name_of
from moekit.data.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from moekit.data.tokenizers import TOKENIZER

_KEY = "tokenizer.ggml"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def tokenizer_metadata(folder: Path, vocab_size: int) -> dict[str, Written]:
    """Make the keys for the tokenizer.json of a folder and what stands beside it; `no_vocab` where there is none.

    Args:
        folder: the model's folder.
        vocab_size: the model's; ids that the tokenizer does not use become unused tokens.

    Raises:
        UsageError: where GGUF has no word for the tokenizer, or its ids would not all be tokens of the model.
        MoekitError: where it cannot be read.
    """
    file = folder / TOKENIZER
    if not file.is_file():
        return {f"{_KEY}.model": "no_vocab"}
    described = _object(file)
    model = described.get("model") or {}
    if model.get("type") != "BPE":
        raise UsageError(f"{file} is a tokenizer of the kind {model.get('type')!r}; GGUF files take BPE from moekit.")
    words, kinds = _vocabulary(described, file, vocab_size)
    keys = _byte_fallback(described, words, kinds) if model.get("byte_fallback") else _byte_level(described, file)
    keys |= {f"{_KEY}.tokens": words, f"{_KEY}.token_type": kinds}
    return keys | _special(folder, file, vocab_size) | _chat_template(folder)


def _vocabulary(described: Mapping[str, Any], file: Path, vocab_size: int) -> tuple[list[str], list[int]]:
    """Find every token's text and kind, by its id."""
    added = described.get("added_tokens") or []
    ids = dict(described["model"]["vocab"]) | {token["content"]: token["id"] for token in added}
    if any(not 0 <= id_ < vocab_size for id_ in ids.values()):
        raise UsageError(f"{file} has ids up to {max(ids.values()):,}, and the model beside it {vocab_size:,} tokens.")
    words = [f"[PAD{id_}]" for id_ in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for word, id_ in ids.items():
        words[id_], kinds[id_] = word, NORMAL
    for token in added:
        kinds[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    return words, kinds


def _byte_level(described: Mapping[str, Any], file: Path) -> dict[str, Written]:
    pre = name_of(described.get("pre_tokenizer"))
    if pre is None or described.get("normalizer") not in (None, {"type": "NFC"}):
        raise UsageError(f"{file} cuts or changes texts in a way that GGUF files have no name for.")
    return {
        f"{_KEY}.model": "gpt2",
        f"{_KEY}.pre": pre,
        f"{_KEY}.merges": [" ".join(pair) for pair in _merges(described)],
    }


def _byte_fallback(described: Mapping[str, Any], words: list[str], kinds: list[int]) -> dict[str, Written]:
    """Describe a tokenizer of SentencePiece's kind, and enter bytes and <unk> into `kinds`.

    A token's score is the rank of the first merge that makes it, negated.
    """
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(described)):
        ranks.setdefault(left + right, rank)
    unknown = described["model"].get("unk_token")
    for id_, word in enumerate(words):
        if _BYTE_TOKEN.fullmatch(word):
            kinds[id_] = BYTE
        elif word == unknown:
            kinds[id_] = UNKNOWN
    # A token that no merge makes is never joined, whatever its score.
    scores = [-float(ranks.get(word, len(ranks))) if kinds[id_] == NORMAL else 0.0 for id_, word in enumerate(words)]
    return {
        f"{_KEY}.model": "llama",
        f"{_KEY}.pre": "default",
        f"{_KEY}.scores": scores,
        f"{_KEY}.add_space_prefix": _is_prefixed(described.get("normalizer"), described.get("pre_tokenizer")),
    }


def _is_prefixed(*steps: Mapping[str, Any] | None) -> bool:
    """Tell whether one of these steps, or of those inside them, puts a space before a text."""
    for step in steps:
        if step is None:
            continue
        if step.get("type") == "Prepend" or step.get("prepend_scheme", "never") != "never":
            return True
        if _is_prefixed(*step.get("normalizers", []), *step.get("pretokenizers", [])):
            return True
    return False


def _merges(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Read the pairs to merge: old files have a text for each pair, newer ones a list."""
    found = described["model"].get("merges") or []
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in found]
    return [(left, right) for left, right in pairs]


def _special(folder: Path, file: Path, vocab_size: int) -> dict[str, Written]:
    """Find the ids of special tokens, and which of them stand around a text."""
    config = _object(folder / "config.json")
    found: dict[str, Written] = {}
    for theirs, ours in _IDS.items():
        value = config.get(theirs)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and 0 <= value < vocab_size:
            found[f"{_KEY}.{ours}"] = value
    try:
        ids = Rust.from_file(str(file)).encode("a", add_special_tokens=True).ids
    except Exception as error:  # the library raises bare Exception for whatever is wrong with a file
        raise MoekitError(f"{file} is not a tokenizer: {' '.join(str(error).split())}") from error
    found[f"{_KEY}.add_bos_token"] = bool(ids) and ids[0] == found.get(f"{_KEY}.bos_token_id")
    found[f"{_KEY}.add_eos_token"] = bool(ids) and ids[-1] == found.get(f"{_KEY}.eos_token_id")
    return found


def _chat_template(folder: Path) -> dict[str, Written]:
    """Find the template of the tokenizer's configuration, or of a file of its own."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {"tokenizer.chat_template": file.read_text(encoding="utf-8")}
    template = _object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return {"tokenizer.chat_template": template} if isinstance(template, str) else {}


def _object(file: Path) -> dict[str, Any]:
    """Read the object in a file of JSON; it is empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MoekitError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise MoekitError(f"{file} must hold an object.")
    return values
