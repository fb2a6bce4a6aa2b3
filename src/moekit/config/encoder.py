"""The bidirectional encoder's configuration, which BERT is."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moekit.config.config_base import MAX_LAYERS, Config, Count, Positive
from moekit.config.feed_forward import ActivationName, FeedForwardConfig

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class EncoderConfig(Config):
    """A bidirectional encoder with a masked-language-model head (BERT: Devlin et al., arXiv 1810.04805).

    Norms are LayerNorms that follow what is added, h = norm(h + f(h)); all matrices of attention have biases.

    Attributes:
        width: the width of the residual stream (D), a multiple of heads.
        context: the number of learned positions.
        types: the types of tokens, as which sentence they belong to.
        layers: one feed-forward configuration a layer.
        head_activation: the activation of the masked-language-model head. BERT's own code has the tanh approximation of
            GELU (google-research/bert `modeling.py`), and the published config.json say "gelu", which others read as
            the exact one.
        next_sentence: whether there is a head that tells whether the second sentence follows the first.
        init_std: the deviation of the normal initialisation of all matrices.
        pad_token: the id of [PAD], where the model has it. Making batches and pseudo-log-likelihoods needs this and
            the following tokens, the forward pass does not.
        start_token: the id of [CLS].
        separator_token: the id of [SEP].
        mask_token: the id of [MASK].
    """

    kind: Literal["encoder"] = "encoder"
    vocab_size: Count
    width: Count
    context: Count
    heads: Count
    layers: Annotated[tuple[FeedForwardConfig, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    types: Count = 2
    norm_eps: Positive = 1e-12
    head_activation: ActivationName = "gelu"
    next_sentence: bool = True
    init_std: Positive = 0.02
    pad_token: TokenId | None = None
    start_token: TokenId | None = None
    separator_token: TokenId | None = None
    mask_token: TokenId | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        for token in self.special_tokens:
            if token >= self.vocab_size:
                raise ValueError(f"the special token {token} is not in a vocabulary of {self.vocab_size}")
        return self

    @property
    def special_tokens(self) -> tuple[int, ...]:
        """The ids that stand for no text."""
        tokens = (self.pad_token, self.start_token, self.separator_token, self.mask_token)
        return tuple(token for token in tokens if token is not None)

    @property
    def feed_forwards(self) -> tuple[FeedForwardConfig, ...]:
        """The feed-forward part of each layer."""
        return self.layers
