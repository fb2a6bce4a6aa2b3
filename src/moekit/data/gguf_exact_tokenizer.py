"""What GGUF's own keys cannot say of a tokenizer, in a key of moekit's own, so that its ids come back exactly.

The key holds the tokenizer.json without the tokens and merges, which stand in GGUF's keys: normaliser and
pre-tokenizer, what stands around a prompt, the flags of added tokens. Beside it lie the start and all end tokens. Other
programs pass it over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Rust
from tokenizers.models import BPE, Unigram

from moekit.checkpoint.gguf import Metadata
from moekit.core.errors import MoekitError

KEY = "moekit.tokenizer"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_OF_BPE = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges")


@dataclass(frozen=True)
class ExactTokenizer:
    """What the key says.

    Attributes:
        steps: a tokenizer.json whose model has neither vocabulary nor merges.
        outside: ids of added tokens that are none of the model's own.
        scores: of a unigram model, where they are not numbers of 32 bits.
        start: the token that stands before a text.
        end_tokens: the ids that end a text or an answer.
        special_texts: the texts of `bos_token` and others.
    """

    steps: dict[str, Any]
    outside: frozenset[int]
    scores: list[float] | None
    start: int | None
    end_tokens: frozenset[int]
    special_texts: Mapping[str, str]

    def written(self) -> str:
        """Give the key's value."""
        values = {
            "tokenizer": self.steps,
            "outside": sorted(self.outside),
            "scores": self.scores,
            "start": self.start,
            "end_tokens": sorted(self.end_tokens),
            "special_texts": dict(self.special_texts),
        }
        return json.dumps({name: value for name, value in values.items() if value is not None}, ensure_ascii=False)

    def build(self, ids: Mapping[str, int], merges: Sequence[tuple[str, str]], scores: Sequence[float] | None) -> Rust:
        """Build the tokenizer; ValueError where it does not fit the tokens.

        Args:
            ids: of all tokens, by their texts.
            merges: of a BPE model.
            scores: of a unigram model, by id.
        """
        model = self.steps["model"]
        own = {word: id_ for word, id_ in ids.items() if id_ not in self.outside}
        bare: dict[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}
        rust = Rust(self._model(model, own, merges, scores))
        around = Rust.from_str(json.dumps({**self.steps, "model": bare, "added_tokens": []}))
        for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            if getattr(around, step) is not None:
                setattr(rust, step, getattr(around, step))
        added = sorted(self.steps["added_tokens"], key=lambda token: token["id"])
        rust.add_tokens([AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS}) for token in added])
        for token in added:
            if rust.token_to_id(token["content"]) != token["id"]:
                raise ValueError(f"the token {token['content']!r} would not be {token['id']}")
        return rust

    def _model(
        self,
        model: Mapping[str, Any],
        own: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        scores: Sequence[float] | None,
    ) -> BPE | Unigram:
        if model["type"] == "BPE":
            options = {name: model[name] for name in _OF_BPE if model.get(name) is not None}
            return BPE(dict(own), list(merges), **options)
        exact = self.scores if self.scores is not None else scores
        in_order = sorted(own, key=lambda word: own[word])
        if exact is None or len(exact) < len(in_order) or [own[word] for word in in_order] != [*range(len(own))]:
            raise ValueError("a unigram model needs a score for each token")
        return Unigram(
            [(word, float(exact[own[word]])) for word in in_order],
            model.get("unk_id"),
            bool(model.get("byte_fallback")),
        )


def read_exact(metadata: Metadata) -> ExactTokenizer | None:
    """Read the key; None where a file has none.

    Raises:
        MoekitError: where it holds something else.
    """
    if KEY not in metadata:
        return None
    try:
        values = json.loads(metadata.get_as(str, KEY))
        start, texts = values.get("start"), dict(values["special_texts"])
        if not all(isinstance(text, str) for pair in texts.items() for text in pair):
            raise TypeError
        return ExactTokenizer(
            steps=dict(values["tokenizer"]),
            outside=_ids(values["outside"]),
            scores=values.get("scores"),
            start=None if start is None else min(_ids([start])),
            end_tokens=_ids(values["end_tokens"]),
            special_texts=texts,
        )
    except MoekitError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise metadata.problem(KEY, f"is not what moekit writes ({type(error).__name__})") from error


def _ids(values: Any) -> frozenset[int]:
    if not isinstance(values, list) or not all(type(id_) is int and id_ >= 0 for id_ in values):
        raise TypeError("ids are whole numbers")
    return frozenset(values)
