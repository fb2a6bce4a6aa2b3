"""The scorer of each kind of model."""

from collections.abc import Callable

from moekit.core.errors import UsageError
from moekit.data.model_tokenizer import tokenizer_of
from moekit.data.tokenizers import ByteTokenizer
from moekit.evaluation.score import LineScorer, Score, WindowScorer
from moekit.models import LanguageModel, NGram

LONGEST = 2048
"""Tokens of context where neither the model nor the caller sets a limit: more costs memory and changes little."""


def scorer_of(model: LanguageModel | NGram, context: int | None = None) -> Callable[[str], Score]:
    """Make the function that gives (nats, tokens, bytes) of a text.

    Args:
        model: the model that scores.
        context: the tokens that a prediction may see at most; by default what the model takes, up to 2048.

    Raises:
        UsageError: where the model takes fewer tokens, its tokenizer is missing, or it scores no single texts.
    """
    if isinstance(model, NGram):
        if not model.vocabulary.is_bytes:
            return LineScorer(model)
        return WindowScorer(model.log_prob, ByteTokenizer(model.vocabulary.begin), context or LONGEST)
    limit = model.context
    if context is not None and limit is not None and context > limit:
        raise UsageError(f"The model's context is {limit:,} tokens; --context {context:,} is more.")
    vocab_size = getattr(model.config, "vocab_size", None)
    if vocab_size is None:
        name = model.origin or "The model"
        raise UsageError(
            f"{name} ({type(model).__name__}) scores pairs of texts, not a text; its `loss` measures pairs."
        )
    tokenizer = tokenizer_of(model.origin, vocab_size)
    return WindowScorer(model.log_prob, tokenizer, context or min(limit or LONGEST, LONGEST))
