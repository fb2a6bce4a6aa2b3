"""Pre-tokenizers: how tokenizers cut a text before they merge, by the names that GGUF files have for them.

Patterns are those of the published tokenizer.json as far as they are known, else llama.cpp's (src/llama-vocab.cpp),
which are written for an engine of its own. Names, and what goes with each, are llama.cpp's.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Rust


@dataclass(frozen=True)
class PreTokenizer:
    """How texts are cut, and what is taken for granted beside it.

    Attributes:
        patterns: each cuts the pieces that those before it left.
        whole_words_first: whether a piece that is a token is one, whatever the merges say.
        starts: whether a text begins with a token of its own where the file does not say.
        byte_level: whether tokens are bytes in GPT-2's letters; else they are text, with tokens for single bytes.
        marks_spaces: whether a space becomes "▁".
    """

    patterns: tuple[str, ...]
    whole_words_first: bool = False
    starts: bool = False
    byte_level: bool = True
    marks_spaces: bool = False

    def steps(self) -> Any:
        """Make the step of the `tokenizers` library that cuts so."""
        cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        if self.byte_level:
            cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(cuts)


_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_LINES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA_3 = _ENGLISH + _WORD + r"\p{N}{1,3}" + _SIGNS + _LINES
_QWEN_2 = _ENGLISH + _WORD + r"\p{N}" + _SIGNS + _LINES
_QWEN_35 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _LINES
_JAIS_2 = (
    _ENGLISH + _WORD + r"\p{N}{1,3}" + _SIGNS + r"|\s*[\r\n]+"
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
    r"|\s{1,2}(?!\S)|\s{1}"
)
_SEED = _ENGLISH + _WORD + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _LINES
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_EXAONE = (
    _ENGLISH + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(after: str = "", but: str = "") -> str:
    """Give words that are cut where a capital follows. after: what may end them. but: letters that are none here."""
    first, upper, lower = r"[^\r\n\p{L}\p{N}]?", f"[{_UPPER}{but}]", f"[{_LOWER}{but}]"
    return f"{first}{upper}*{lower}+{after}|{first}{upper}+{lower}*{after}"


_TEKKEN = _cased() + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES
_GPT_4O = _cased(_ENGLISH + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES
_KIMI = r"[\p{Han}]+|" + _cased(_ENGLISH + "?", r"&&[^\p{Han}]") + r"|\p{N}{1,3}" + _SIGNS + _LINES
_YOUTU = _cased(_ENGLISH + "?") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES
_YOUTU_EAST = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_THREE_DIGITS, _DIGIT = r"\p{N}{1,3}", r"\p{N}"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
_SPARK = _DEEPSEEK_3.replace("[\r\n]*|\\s*[\r\n]+", "|[\r\n]")
_AFMOE_EAST = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_EAST = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
_BY_LINE = r"[^\n]+|[\n]+"
_BEFORE_THREES = r"(?=(\d{3})+(?!\d))"

_TABLE: tuple[tuple[PreTokenizer, str], ...] = (
    (
        PreTokenizer((_GPT_2,)),
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
        "modern-bert exaone4 mpt olmo jais trillion granite-docling",
    ),
    (
        PreTokenizer((_LLAMA_3,), whole_words_first=True, starts=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (PreTokenizer((_LLAMA_3,)), "smaug-bpe dbrx glm4 chatglm-bpe"),
    (
        PreTokenizer((_QWEN_2,)),
        "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
    ),
    (PreTokenizer((_QWEN_35,)), "qwen35"),
    (
        PreTokenizer((_DIGIT, _GPT_2)),
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (PreTokenizer((_TEKKEN,), whole_words_first=True, starts=True), "tekken"),
    (PreTokenizer((_GPT_4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (PreTokenizer((_GPT_4O,), whole_words_first=True), "granite-embed-multi-97m"),
    (PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT_4O)), "tiny_aya cohere2moe"),
    (PreTokenizer((_KIMI,)), "kimi-k2"),
    (PreTokenizer((_THREE_DIGITS, _HAN_AND_KANA, _DEEPSEEK_3)), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (
        PreTokenizer(
            (
                "[\r\n]",
                f"\\s?[{_CASED_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _DEEPSEEK_EAST,
                _DIGIT,
            )
        ),
        "deepseek-llm",
    ),
    (PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_EAST, _DIGIT)), "deepseek-coder"),
    (PreTokenizer((_THREE_DIGITS, _HAN_AND_KANA, _SPARK, _DIGIT)), "spark2_5"),
    (PreTokenizer((_YOUTU_EAST, _YOUTU), whole_words_first=True), "youtu"),
    (PreTokenizer((_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer((_SEED,)), "seed-coder"),
    (PreTokenizer((_QWEN_2.removeprefix(_ENGLISH + "|"),)), "ufakzeka"),
    (PreTokenizer((r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _AFMOE_EAST, _DEEPSEEK_3)), "afmoe"),
    (PreTokenizer((_BY_LINE, _QWEN_2)), "laguna"),
    (PreTokenizer((_EXAONE,)), "exaone-moe"),
    (
        PreTokenizer((_THREE_DIGITS, _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}+")), whole_words_first=True),
        "minicpm5",
    ),
    (PreTokenizer((_JAIS_2,)), "jais-2"),
    (PreTokenizer((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((_BLOOM, _DIGIT)), "viking"),
    (PreTokenizer((r"\p{N}+", _BEFORE_THREES)), "superbpe"),
    (
        PreTokenizer(
            (
                r"<sentinel:[0-9]+>",
                r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                _DIGIT,
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT_2,
            ),
            starts=True,
        ),
        "chameleon",
    ),
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT_2, "[0-9][0-9][0-9]")), "falcon"),
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
    (PreTokenizer((_BY_LINE,), byte_level=False, marks_spaces=True), "gemma4 granite-embed-multi-311m sarvam-moe"),
    (PreTokenizer((r"\S+",), byte_level=False), "whitespace"),
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {name: made for made, names in _TABLE for name in names.split()}
"""All names that llama.cpp knows; of those that cut alike, the one that is written comes first."""

_PROBE = (
    "Hello world, it's 3.14159 or 2024! They'LL 'tis  don't   we've\tTabs\n\n  \n x=1;y==2\r\n\r\n    def f(a, b):\n"
    "\treturn a_b+c //x\n...///\n!?\n\n \xe9\xfcber na\xefve e\u0301a\u0308b CamelCaseXYZ ABCdef HTTPServer\xc4b "
    "\u4e2d\u6587\u5b57\u30c6\u30b9\u30c8\u3072 \ud55c\uad6d\uc5b4 \u0e20\u0e32\u0e29\u0e32 \u0627\u0644\u0639 \u0939"
    "\u093f\u0928 1 12  123 1234   12345 123456 1234567 \u0663\u0664\u0665\u0666 \xbd\u2167 a1b22c333d4444 $+=^~|`<>"
    " #@&*()[]{} <sentinel:12>IMGIMGABZ 'S'T'Re'VE's l'tis X'Mall\u2019s \U0001f600\U0001f999\u200d\u2b1b \xa0\u3000"
    "\u2003x \u2014\u2026\u3002\uff01\uff0c\u3001\u3105\u3106 word's word'LL abc\u0301def 9\xb2 $5 %d &x !ab .com ,,b"
    " -c (d [e _f ~g a.b a. b ,c? \u0964\u0939      five     x          ten\n   \n\n\n\nend\x00\x1f\ufeff \u01c5ungla"
    " \u1c90\u10d0 \u0561\u0531 \ud7b0 \u0800 a  b   c  "
)


def name_of(pre_tokenizer: Mapping[str, Any] | None, *, whole_words_first: bool = False) -> str | None:
    """Find the name of what the `pre_tokenizer` of a tokenizer.json does, from how it cuts a text of many kinds.

    What it puts before a text does not count, since no name has it. whole_words_first: whether the tokenizer takes a
    piece that is a token as one; the name of that is taken where there is one.

    Returns:
        The name; None where there is none.
    """
    if pre_tokenizer is None:
        return None
    wanted = _pieces(_step(_without_prefix(pre_tokenizer)))
    found = [
        (made.whole_words_first is not whole_words_first, number, names.split()[0])
        for number, (made, names) in enumerate(_TABLE)
        if made.byte_level and _pieces(made.steps()) == wanted
    ]
    return min(found)[2] if found else None


def _step(described: Mapping[str, Any]) -> Any:
    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Rust.from_str(json.dumps({"model": model, "pre_tokenizer": described})).pre_tokenizer


def _pieces(step: Any) -> list[str]:
    return [piece for piece, _ in step.pre_tokenize_str(_PROBE)]


def _without_prefix(step: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(step)
    if changed.get("add_prefix_space"):
        changed["add_prefix_space"] = False
    if "pretokenizers" in changed:
        changed["pretokenizers"] = [_without_prefix(inner) for inner in changed["pretokenizers"]]
    return changed


def steps_within(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Give a step of a tokenizer.json, or those of a sequence, in their order."""
    if step is not None:
        inner = [*step.get("normalizers", []), *step.get("pretokenizers", [])]
        if step.get("type") != "Sequence":
            yield step
        for part in inner:
            yield from steps_within(part)
