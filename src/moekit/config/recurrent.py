"""The configuration of the recurrent language model: LSTM layers with AWD-LSTM's regularisation, or with none."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moekit.config.config_base import MAX_LAYERS, Config, Count, NonNegative, Positive

Share = Annotated[float, Field(ge=0, lt=1)]
"""A dropout's probability."""


class LSTMConfig(Config):
    """A language model of LSTM layers (Merity, Keskar & Socher, AWD-LSTM, arXiv 1708.02182; salesforce/awd-lstm-lm).

    The dropouts and penalties act in training only. The published recipe: SGD at 30 with gradients clipped at 0.25,
    over chunks of about 70 tokens that carry the state on, a chunk's learning rate in proportion to its length; then
    averaged weights (`moekit.training.nt_asgd`).

    Attributes:
        widths: the widths of the layers, bottom first.
        tie_embeddings: whether the output matrix is the embedding; the last layer then has to be as wide as it is.
        word_dropout: the dropout of whole words of the vocabulary (section 4.3).
        input_dropout: the dropout of embeddings.
        layer_dropout: the dropout between layers.
        output_dropout: the dropout after the last layer.
        locked: whether these three keep one mask for all tokens of a sequence (variational dropout, section 4.2);
            otherwise there is a mask a token (Zaremba et al., arXiv 1409.2329).
        weight_dropout: the dropout of the recurrent matrices, one mask a pass (DropConnect, section 2).
        activation_penalty: alpha of section 4.6, the factor of the last layer's mean square, after dropout.
        temporal_penalty: beta of section 4.6, the factor of the mean square of the last layer's change from token to
            token, before dropout.
        init_range: embedding and output matrix are drawn from U(-init_range, init_range); the output's bias is 0.
        recurrent_init_range: the same for the layers, None for 1 / sqrt(width of the layer).
    """

    kind: Literal["lstm"] = "lstm"
    vocab_size: Count
    embedding_width: Count
    widths: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    tie_embeddings: bool = True
    word_dropout: Share = 0.0
    input_dropout: Share = 0.0
    layer_dropout: Share = 0.0
    output_dropout: Share = 0.0
    weight_dropout: Share = 0.0
    locked: bool = True
    activation_penalty: NonNegative = 0.0
    temporal_penalty: NonNegative = 0.0
    init_range: Positive = 0.1
    recurrent_init_range: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tie_embeddings and self.widths[-1] != self.embedding_width:
            raise ValueError(
                f"with tied embeddings the last layer ({self.widths[-1]}) must be as wide as the embedding "
                f"({self.embedding_width})"
            )
        return self

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """The input and output width of each layer."""
        return tuple(zip((self.embedding_width, *self.widths), self.widths, strict=False))
