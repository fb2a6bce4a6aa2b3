"""The tokenizer that stands in the metadata of a GGUF file: byte-level BPE, or SentencePiece's BPE with its scores."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Rust
from tokenizers.models import BPE

from moekit.checkpoint.gguf import Metadata
from moekit.config import BYTE_VOCAB_SIZE
from moekit.core.errors import MoekitError, UsageError, did_you_mean
from moekit.data.gguf_pre_tokenizers import PATTERNS, WHOLE_WORDS_FIRST
from moekit.data.tokenizers import ByteTokenizer, Tokenizer

_KEY = "tokenizer.ggml"
# Kinds of tokens, as the files number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Texts of tokens that end an answer, where files do not say so by an id (llama.cpp looks for them, too).
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")
_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # so spelled in the format
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}


class GGUFTokenizer:
    """The tokenizer of a GGUF file.

    Attributes:
        start: the token that stands before a text.
        special_tokens: ids by the texts of special tokens.
        special_texts: the texts of `bos_token` and others, by the names that chat templates know them by.
        end_tokens: the ids that end a text or an answer.

    Raises:
        MoekitError: where the file's tokenizer is of a kind that moekit does not have, or contradicts itself.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._model = metadata.get_as(str, f"{_KEY}.model")
        if self._model not in ("gpt2", "llama"):
            raise metadata.problem(f"{_KEY}.model", f"is {self._model!r}, and moekit has gpt2 and llama")
        self._words = _words(metadata)
        self._kinds = _kinds(metadata, len(self._words))
        self.vocab_size = len(self._words)
        ids = self._ids()
        self.start: int | None = ids.get("bos_token", ids.get("eos_token"))
        self.special_texts = {name: self._words[id_] for name, id_ in ids.items()}
        special = [id_ for id_, kind in enumerate(self._kinds) if kind in (CONTROL, UNKNOWN)]
        self.special_tokens: Mapping[str, int] = {self._words[id_]: id_ for id_ in special}
        ends = {self.special_tokens[word] for word in _ENDS if word in self.special_tokens}
        self.end_tokens = frozenset(
            ends | {ids[name] for name in ("eos_token", "eot_token", "eom_token") if name in ids}
        )
        self._before, self._after = self._around(ids)
        self._bpe = self._merging()
        self._rust = self._whole()

    @property
    def chat_template(self) -> str | None:
        """The file's Jinja template for conversations; None where it has none."""
        return self._metadata.get_as(str, "tokenizer.chat_template", "") or None

    def encode(self, text: str) -> list[int]:
        """Encode a text to ids, without start or end."""
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text with the special tokens that the file asks for around it."""
        return [*self._before, *self.encode(text), *self._after]

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text in which nothing is a special token."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to a text."""
        return str(self._rust.decode(list(ids)))

    @cached_property
    def _plain(self) -> Rust:
        """A second tokenizer: the switch is the tokenizer's own, and others may be encoding with the first."""
        plain = self._whole()
        plain.encode_special_tokens = True
        return plain

    @property
    def _pre(self) -> str:
        """The name of the pre-tokenizer."""
        name = self._metadata.get_as(str, f"{_KEY}.pre", "default")
        if name not in PATTERNS:
            known = did_you_mean(name, PATTERNS).rstrip(".?")
            raise self._metadata.problem(f"{_KEY}.pre", f"is {name!r}, which moekit does not know; {known}")
        return name

    @property
    def _prefixed(self) -> bool:
        """Whether a space is put before a text."""
        return self._model == "llama" and self._metadata.get_as(bool, f"{_KEY}.add_space_prefix", True)

    def _ids(self) -> dict[str, int]:
        """Find the ids of special tokens, by their names."""
        usual = {"bos_token": 1, "eos_token": 2, "unk_token": 0} if self._model == "llama" else {}
        keys = _SPECIAL_IDS | {"eot_token": "eot_token_id", "eom_token": "eom_token_id"}
        found = {name: self._metadata.get_as(int, f"{_KEY}.{key}", usual.get(name, -1)) for name, key in keys.items()}
        return {name: id_ for name, id_ in found.items() if 0 <= id_ < len(self._words)}

    def _around(self, ids: Mapping[str, int]) -> tuple[list[int], list[int]]:
        """Find the special tokens before and after a prompt."""
        begins = self._model == "llama" or self._pre in WHOLE_WORDS_FIRST
        before = self._metadata.get_as(bool, f"{_KEY}.add_bos_token", begins)
        after = self._metadata.get_as(bool, f"{_KEY}.add_eos_token", False)
        return (
            [ids["bos_token"]] if before and "bos_token" in ids else [],
            [ids["eos_token"]] if after and "eos_token" in ids else [],
        )

    def _merging(self) -> BPE:
        vocabulary = dict(zip(self._words, range(len(self._words)), strict=True))
        if len(vocabulary) < len(self._words):
            raise self._metadata.problem(f"{_KEY}.tokens", "holds a token twice")
        try:
            if self._model == "llama":
                unknown = self.special_texts.get("unk_token")
                merges = self._merges_of_scores(vocabulary)
                return BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
            return BPE(vocabulary, self._merges(), ignore_merges=self._pre in WHOLE_WORDS_FIRST)
        except Exception as error:  # the library raises bare Exception, of merges that are no tokens for example
            if isinstance(error, MoekitError):
                raise
            reason = " ".join(str(error).split())
            raise self._metadata.problem(f"{_KEY}.merges", f"do not fit the tokens ({reason})") from error

    def _merges(self) -> list[tuple[str, str]]:
        merges = self._metadata.strings(f"{_KEY}.merges")
        if merges is None:
            raise self._metadata.problem(f"{_KEY}.merges", "is missing")
        # A space is no part of a byte-level token.
        pairs = [tuple(merge.split(" ")) for merge in _texts(merges.raw(), self._metadata, f"{_KEY}.merges")]
        if any(len(pair) != 2 for pair in pairs):
            raise self._metadata.problem(f"{_KEY}.merges", "must be pairs of tokens with a space between")
        return pairs  # type: ignore[return-value]

    def _merges_of_scores(self, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
        """Derive the merges from the scores of a SentencePiece model.

        SentencePiece joins, of all neighbours that are a token together, those whose token has the highest score: so
        every way to cut a token into two tokens is a merge, in the order of the scores.
        """
        scores = self._metadata.numbers(f"{_KEY}.scores")
        if scores is None or len(scores) < len(self._words):
            raise self._metadata.problem(f"{_KEY}.scores", "is missing or too short")
        kinds = zip(self._words, self._kinds, strict=True)
        joined = {word for word, kind in kinds if kind in (NORMAL, USER_DEFINED, UNUSED)}
        by_score = sorted(joined, key=lambda word: (-float(scores[vocabulary[word]]), vocabulary[word]))
        return [
            (word[:cut], word[cut:])
            for word in by_score
            for cut in range(1, len(word))
            if word[:cut] in joined and word[cut:] in joined
        ]

    def _whole(self) -> Rust:
        """Build the tokenizer: the merges and the steps around them."""
        rust = Rust(self._bpe)
        if self._model == "gpt2":
            cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[self._pre]]
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            rust.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
            rust.decoder = decoders.ByteLevel()
        else:
            prefix = [normalizers.Prepend("▁")] if self._prefixed else []
            rust.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
            strip = [decoders.Strip(" ", 1, 0)] if self._prefixed else []
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
            rust.decoder = decoders.Sequence(steps)
        rust.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in self.special_tokens])
        own = [word for word, kind in zip(self._words, self._kinds, strict=True) if kind == USER_DEFINED]
        rust.add_tokens([AddedToken(word, special=False, normalized=False) for word in own])
        return rust


def gguf_tokenizer(metadata: Metadata, vocab_size: int) -> Tokenizer:
    """Load the tokenizer of a file for a model of `vocab_size` tokens; a model of 256 without one reads bytes.

    Raises:
        UsageError: where there is no tokenizer.
        MoekitError: where it cannot be used.
    """
    if metadata.get(f"{_KEY}.model") in (None, "no_vocab", "none"):
        if vocab_size == BYTE_VOCAB_SIZE:
            return ByteTokenizer()
        raise UsageError(f"{metadata.path} holds no tokenizer; quantise the model again from a folder with one.")
    tokenizer = GGUFTokenizer(metadata)
    if tokenizer.vocab_size > vocab_size:
        raise metadata.problem(f"{_KEY}.tokens", f"are {tokenizer.vocab_size:,}, and the model has {vocab_size:,}")
    return tokenizer


def _words(metadata: Metadata) -> list[str]:
    """Read the tokens' texts; an empty one gets a name, as in llama.cpp."""
    tokens = metadata.strings(f"{_KEY}.tokens")
    if tokens is None or not len(tokens):
        raise metadata.problem(f"{_KEY}.tokens", "is missing or empty")
    words = _texts(tokens.raw(), metadata, f"{_KEY}.tokens")
    return [word or f"[EMPTY_{id_}]" for id_, word in enumerate(words)]


def _texts(raw: list[bytes], metadata: Metadata, key: str) -> list[str]:
    try:
        # All at once takes a third of the time, unless one of them holds what stands between them.
        texts = str(b"\0".join(raw), "utf-8").split("\0")
        return texts if len(texts) == len(raw) else [str(word, "utf-8") for word in raw]
    except UnicodeDecodeError as error:
        raise metadata.problem(key, "holds a text that is not UTF-8") from error


def _kinds(metadata: Metadata, count: int) -> list[int]:
    kinds = metadata.numbers(f"{_KEY}.token_type")
    if kinds is None:
        return [NORMAL] * count
    if len(kinds) < count:
        raise metadata.problem(f"{_KEY}.token_type", f"has {len(kinds):,} entries for {count:,} tokens")
    return kinds[:count].astype(int).tolist()  # type: ignore[no-any-return]
