"""The tokenizer that stands in the metadata of a GGUF file: byte-pair merges, or SentencePiece's scores.

GGUF's own keys say what llama.cpp does. Files that moekit wrote say more (`gguf_exact_tokenizer.py`), and give the ids
that the folder's tokenizer gave.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, processors
from tokenizers import Tokenizer as Rust
from tokenizers.models import BPE, Unigram

from moekit.checkpoint.gguf import Metadata
from moekit.config import BYTE_VOCAB_SIZE
from moekit.core.errors import MoekitError, UsageError, did_you_mean
from moekit.data.end_tokens import known_ends
from moekit.data.gguf_exact_tokenizer import KEY as EXACT_KEY
from moekit.data.gguf_exact_tokenizer import ExactTokenizer, read_exact
from moekit.data.gguf_merges import KEY, listed_merges, merges_of_scores, texts
from moekit.data.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from moekit.data.tokenizers import ByteTokenizer, Tokenizer

# Kinds of tokens, as the files number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # so spelled in the format
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
_FURTHER_IDS = {"eot_token": "eot_token_id", "eom_token": "eom_token_id"}
_ENDS = ("eos_token", "eot_token", "eom_token")
# What llama.cpp takes the ids to be where a file does not say.
_USUAL_IDS = {
    "llama": {"bos_token": 1, "eos_token": 2, "unk_token": 0},
    "t5": {"eos_token": 1, "unk_token": 2, "pad_token": 0},
}
_BYTE_PAIRS = ("gpt2", "gemma4")
_MODELS = (*_BYTE_PAIRS, "llama", "t5")


class GGUFTokenizer:
    """The tokenizer of a GGUF file.

    Args:
        metadata: the file's.
        usual_keys: whether to read GGUF's own keys alone, as other programs do.

    Attributes:
        start: the token that stands before a text.
        special_tokens: ids by the texts of special tokens.
        special_texts: the texts of `bos_token` and others, by the names that chat templates know them by.
        end_tokens: the ids that end a text or an answer.

    Raises:
        MoekitError: where the file's tokenizer is of a kind that moekit does not have, or contradicts itself.
    """

    def __init__(self, metadata: Metadata, *, usual_keys: bool = False) -> None:
        self._metadata = metadata
        self._model = metadata.get_as(str, f"{KEY}.model")
        if self._model not in _MODELS:
            raise metadata.problem(f"{KEY}.model", f"is {self._model!r}, and moekit has {', '.join(_MODELS)}")
        self._words = _words(metadata)
        self._ids = dict(zip(self._words, range(len(self._words)), strict=True))
        if len(self._ids) < len(self._words):
            raise metadata.problem(f"{KEY}.tokens", "holds a token twice")
        self.vocab_size = len(self._words)
        self._named = self._named_ids()
        known = known_ends(self._ids)
        self._kinds = [CONTROL if id_ in known else kind for id_, kind in enumerate(_kinds(metadata, len(self._words)))]
        exact = None if usual_keys else read_exact(metadata)
        self._make: Callable[[], Rust] = self._usual() if exact is None else self._exact(exact)
        self._rust = self._make()
        added = self._rust.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {token.content: id_ for id_, token in added.items() if token.special}
        self.start: int | None = self._named.get("bos_token", self._named.get("eos_token"))
        self.special_texts: Mapping[str, str] = self._special_texts
        self.end_tokens = known | {self._named[name] for name in _ENDS if name in self._named}
        self._around = self._usual_around() if exact is None else None
        if exact is not None:
            self.start, self.end_tokens, self.special_texts = exact.start, exact.end_tokens, exact.special_texts

    @property
    def chat_template(self) -> str | None:
        """The file's Jinja template for conversations; None where it has none."""
        return self._metadata.get_as(str, "tokenizer.chat_template", "") or None

    def encode(self, text: str) -> list[int]:
        """Encode a text to ids, without start or end."""
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text with the special tokens that the file asks for around it."""
        if self._around is None:
            return list(self._rust.encode(text, add_special_tokens=True).ids)
        before, after = self._around
        return [*before, *self.encode(text), *after]

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text in which nothing is a special token."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to a text."""
        return str(self._rust.decode(list(ids)))

    def described(self) -> dict[str, Any]:
        """Give the tokenizer as a tokenizer.json describes it, with the special tokens around a prompt."""
        whole = self._make()
        if self._around is not None:
            before, after = ([self._words[id_] for id_ in ids] for ids in self._around)
            special = [(word, self._ids[word]) for word in (*before, *after)]
            whole.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=special)
        described: dict[str, Any] = json.loads(whole.to_str())
        return described

    @cached_property
    def _plain(self) -> Rust:
        """A second tokenizer: the switch is the tokenizer's own, and others may be encoding with the first."""
        plain = self._make()
        plain.encode_special_tokens = True
        return plain

    def _named_ids(self) -> dict[str, int]:
        """Find the ids of special tokens by their names."""
        usual = _USUAL_IDS.get(self._model, {})
        keys = _SPECIAL_IDS | _FURTHER_IDS
        found = {name: self._metadata.get_as(int, f"{KEY}.{key}", usual.get(name, -1)) for name, key in keys.items()}
        return {name: id_ for name, id_ in found.items() if 0 <= id_ < len(self._words)}

    @property
    def _special_texts(self) -> dict[str, str]:
        return {name: self._words[id_] for name, id_ in self._named.items() if name in _SPECIAL_IDS}

    @property
    def _pre(self) -> PreTokenizer:
        """How the file's texts are cut before they are merged."""
        name = "gemma4" if self._model == "gemma4" else self._metadata.get_as(str, f"{KEY}.pre", "default")
        if name not in PRE_TOKENIZERS:
            known = did_you_mean(name, PRE_TOKENIZERS).rstrip(".?")
            raise self._metadata.problem(f"{KEY}.pre", f"is {name!r}, which moekit does not know; {known}")
        return PRE_TOKENIZERS[name]

    @property
    def _prefixed(self) -> bool:
        """Whether a space is put before a text."""
        return self._model not in _BYTE_PAIRS and self._metadata.get_as(bool, f"{KEY}.add_space_prefix", True)

    def _usual_around(self) -> tuple[list[int], list[int]]:
        """Find the special tokens before and after a prompt."""
        begins = self._model == "llama" or (self._model in _BYTE_PAIRS and self._pre.starts)
        before = self._metadata.get_as(bool, f"{KEY}.add_bos_token", begins)
        after = self._metadata.get_as(bool, f"{KEY}.add_eos_token", self._model == "t5")
        return (
            [self._named["bos_token"]] if before and "bos_token" in self._named else [],
            [self._named["eos_token"]] if after and "eos_token" in self._named else [],
        )

    def _exact(self, exact: ExactTokenizer) -> Callable[[], Rust]:
        """Give what builds the tokenizer that the file was made of."""
        ids = {word: id_ for word, id_ in self._ids.items() if self._kinds[id_] != UNUSED}
        scores = self._metadata.numbers(f"{KEY}.scores")
        merges = self._listed_merges() if self._model in _BYTE_PAIRS else listed_merges(self._metadata)
        if merges is None and self._model == "llama":
            kinds = [UNUSED if id_ in exact.outside else kind for id_, kind in enumerate(self._kinds)]
            merges = merges_of_scores(self._scores(), self._words, kinds, (NORMAL, USER_DEFINED))

        def make() -> Rust:
            try:
                return exact.build(ids, merges or [], None if scores is None else scores.tolist())
            except Exception as error:  # the library raises bare Exception for whatever is wrong
                reason = " ".join(str(error).split())
                raise self._metadata.problem(EXACT_KEY, f"does not fit the tokens ({reason})") from error

        return make

    def _usual(self) -> Callable[[], Rust]:
        """Give what builds the tokenizer that GGUF's own keys describe."""
        try:
            model = self._usual_model()
        except Exception as error:  # the library raises bare Exception, of merges that are no tokens for example
            if isinstance(error, MoekitError):
                raise
            reason = " ".join(str(error).split())
            key = "scores" if self._model == "t5" else "merges"
            raise self._metadata.problem(f"{KEY}.{key}", f"do not fit the tokens ({reason})") from error
        own = [word for word, kind in zip(self._words, self._kinds, strict=True) if kind == USER_DEFINED]
        kinds = zip(self._words, self._kinds, strict=True)
        special = [
            AddedToken(word, special=True, normalized=False) for word, kind in kinds if kind in (CONTROL, UNKNOWN)
        ]

        def make() -> Rust:
            rust = Rust(model)
            self._add_usual_steps(rust)
            rust.add_special_tokens(special)
            rust.add_tokens([AddedToken(word, special=False, normalized=False) for word in own])
            return rust

        return make

    def _usual_model(self) -> BPE | Unigram:
        if self._model == "llama":
            unknown = self._special_texts.get("unk_token")
            merges = merges_of_scores(self._scores(), self._words, self._kinds, (NORMAL, USER_DEFINED, UNUSED))
            return BPE(self._ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        if self._model == "t5":
            scores = self._scores()
            return Unigram([(word, scores[id_]) for id_, word in enumerate(self._words)], self._named.get("unk_token"))
        pre = self._pre
        merges = self._listed_merges()
        return BPE(self._ids, merges, ignore_merges=pre.whole_words_first, byte_fallback=not pre.byte_level)

    def _listed_merges(self) -> list[tuple[str, str]]:
        merges = listed_merges(self._metadata)
        if merges is None:
            raise self._metadata.problem(f"{KEY}.merges", "is missing")
        return merges

    def _scores(self) -> list[float]:
        scores = self._metadata.numbers(f"{KEY}.scores")
        if scores is None or len(scores) < len(self._words):
            raise self._metadata.problem(f"{KEY}.scores", "is missing or too short")
        return scores.tolist()  # type: ignore[no-any-return]

    def _add_usual_steps(self, rust: Rust) -> None:
        """Add the steps around the model."""
        if self._model in _BYTE_PAIRS:
            rust.pre_tokenizer = self._pre.steps()
            rust.decoder = decoders.ByteLevel()
            if not self._pre.byte_level:
                rust.normalizer = normalizers.Replace(" ", "▁") if self._pre.marks_spaces else None
                rust.decoder = _marked_decoder(prefixed=False)
            return
        prefix = [normalizers.Prepend("▁")] if self._prefixed else []
        rust.normalizer = normalizers.Sequence([*self._unigram_steps(), *prefix, normalizers.Replace(" ", "▁")])
        rust.decoder = _marked_decoder(prefixed=self._prefixed)

    def _unigram_steps(self) -> list[Any]:
        """Give what SentencePiece does to a text before it is cut."""
        if self._model != "t5":
            return []
        charsmap = self._metadata.numbers(f"{KEY}.precompiled_charsmap")
        steps: list[Any] = [] if charsmap is None else [normalizers.Precompiled(charsmap.tobytes())]
        if self._metadata.get_as(bool, f"{KEY}.remove_extra_whitespaces", False):
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        return steps


def gguf_tokenizer(metadata: Metadata, vocab_size: int) -> Tokenizer:
    """Load the tokenizer of a file for a model of `vocab_size` tokens; a model of 256 without one reads bytes.

    Raises:
        UsageError: where there is no tokenizer.
        MoekitError: where it cannot be used.
    """
    if metadata.get(f"{KEY}.model") in (None, "no_vocab", "none"):
        if vocab_size == BYTE_VOCAB_SIZE:
            return ByteTokenizer()
        raise UsageError(f"{metadata.path} holds no tokenizer; quantise the model again from a folder with one.")
    tokenizer = GGUFTokenizer(metadata)
    if tokenizer.vocab_size > vocab_size:
        raise metadata.problem(f"{KEY}.tokens", f"are {tokenizer.vocab_size:,}, and the model has {vocab_size:,}")
    return tokenizer


def _marked_decoder(*, prefixed: bool) -> Any:
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _words(metadata: Metadata) -> list[str]:
    """Read the tokens' texts; an empty one gets a name, as in llama.cpp."""
    tokens = metadata.strings(f"{KEY}.tokens")
    if tokens is None or not len(tokens):
        raise metadata.problem(f"{KEY}.tokens", "is missing or empty")
    words = texts(tokens.raw(), metadata, f"{KEY}.tokens")
    return [word or f"[EMPTY_{id_}]" for id_, word in enumerate(words)]


def _kinds(metadata: Metadata, count: int) -> list[int]:
    kinds = metadata.numbers(f"{KEY}.token_type")
    if kinds is None:
        return [NORMAL] * count
    if len(kinds) < count:
        raise metadata.problem(f"{KEY}.token_type", f"has {len(kinds):,} entries for {count:,} tokens")
    return kinds[:count].astype(int).tolist()  # type: ignore[no-any-return]
