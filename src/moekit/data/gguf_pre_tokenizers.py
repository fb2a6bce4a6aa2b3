"""Pre-tokenizers: how byte-level tokenizers cut a text before they merge, by the names that GGUF files have for them.

Patterns are those of the published tokenizer.json, where llama.cpp (src/llama-vocab.cpp) has an equivalent of its own.
"""

from collections.abc import Mapping
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_PUNCTUATION_AND_SPACE = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = _CONTRACTIONS + r"\p{N}{1,3}" + _PUNCTUATION_AND_SPACE
_QWEN_2 = _CONTRACTIONS + r"\p{N}" + _PUNCTUATION_AND_SPACE
_DIGIT = r"\p{N}"

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "olmo": (_GPT2,),
    "mpt": (_GPT2,),
    "llama-bpe": (_LLAMA_3,),
    "llama-v3": (_LLAMA_3,),
    "llama3": (_LLAMA_3,),
    "dbrx": (_LLAMA_3,),
    "smaug-bpe": (_LLAMA_3,),
    "qwen2": (_QWEN_2,),
    "deepseek-r1-qwen": (_QWEN_2,),
    "stablelm2": (_QWEN_2,),
    "smollm": (_DIGIT, _GPT2),
    "starcoder": (_DIGIT, _GPT2),
    "refact": (_DIGIT, _GPT2),
    "command-r": (_DIGIT, _GPT2),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
"""Each pattern cuts the pieces that those before it left."""

WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama-v3", "llama3"})
"""Where a piece that is a token is one, whatever the merges say; such texts begin with a token of their own, too."""


def name_of(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """Find the name of what the `pre_tokenizer` of a tokenizer.json does; None where there is no such name."""
    found = _patterns(pre_tokenizer)
    return next((name for name, patterns in PATTERNS.items() if found == patterns), None)


def _patterns(step: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Find the patterns that a step cuts at; None where it does anything else."""
    if step is None:
        return ()
    match step.get("type"):
        case "Sequence":
            parts = [_patterns(inner) for inner in step.get("pretokenizers", [])]
            return None if None in parts else tuple(pattern for part in parts if part for pattern in part)
        case "ByteLevel" if not step.get("add_prefix_space"):
            return (_GPT2,) if step.get("use_regex", True) else ()
        case "Digits" if step.get("individual_digits"):
            return (_DIGIT,)
        case "Split" if step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = step.get("pattern", {}).get("Regex")
            return (pattern,) if isinstance(pattern, str) else None
        case "Split" if step.get("behavior") == "Removed" and step.get("invert"):
            # What the pattern matches is kept, which is all of the text, for the patterns that published files have.
            pattern = step.get("pattern", {}).get("Regex")
            return (pattern,) if isinstance(pattern, str) else None
    return None
