"""Recurrent models that turn a source sequence into a target sequence.

Sutskever's has LSTM layers, Bahdanau's gated units with attention.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moekit.config.config_base import Config, Count, Layers, Positive


class Seq2SeqConfig(Config):
    """What both kinds have in common.

    Attributes:
        source_vocab_size: the number of tokens that a source may have.
        target_vocab_size: the number of tokens that a target may have.
        end_token: a token of both vocabularies. It ends a target, and it is what the decoder reads first.
    """

    source_vocab_size: Count
    target_vocab_size: Count
    embedding_width: Count
    width: Count
    end_token: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.end_token >= min(self.source_vocab_size, self.target_vocab_size):
            raise ValueError(f"end_token ({self.end_token}) must be a token of both vocabularies")
        return self


class LSTMSeq2SeqConfig(Seq2SeqConfig):
    """Deep LSTMs, the decoder starting from the encoder's last state (Sutskever et al., arXiv 1409.3215).

    The published recipe (section 3.4): SGD without momentum at 0.7, after 5 epochs halved every half epoch, 7.5 epochs
    in all; batches of 128 sentences of about the same length; the gradient, divided by 128, clipped at a norm of 5.

    Attributes:
        width: the width of the encoder's layers, and of the decoder's.
        layers: the number of the encoder's layers, and of the decoder's.
        reverse_source: whether the source is read from its end (section 3.3).
        init_range: all parameters are drawn from U(-init_range, init_range).
    """

    kind: Literal["lstm_seq2seq"] = "lstm_seq2seq"
    layers: Layers = 4
    reverse_source: bool = True
    init_range: Positive = 0.08


class GRUSeq2SeqConfig(Seq2SeqConfig):
    """Gated recurrent units, with attention over the source (RNNsearch; Bahdanau et al., arXiv 1409.0473, appendix A).

    The paper leaves biases out of its equations; here the gates' inputs, the initial state, the maxout layer and the
    output have one, the alignment has none. Weights are drawn as in appendix B.1: recurrent matrices orthogonal,
    alignment matrices N(0, 0.001²), its vector and biases 0, all others N(0, 0.01²).

    The published recipe (appendix B.2): Adadelta with rho 0.95 and eps 1e-6, batches of 80 sentences, the gradient
    clipped at a norm of 1.

    Attributes:
        embedding_width: m of the paper.
        width: n of the paper.
        alignment_width: n' of the paper.
        maxout_width: l of the paper.
        attention: if False, the encoder reads forwards alone and its last state is the context of every step
            (RNNencdec).
    """

    kind: Literal["gru_seq2seq"] = "gru_seq2seq"
    alignment_width: Count = 1000
    maxout_width: Count = 500
    attention: bool = True

    @property
    def context_width(self) -> int:
        """The width of what the decoder is given of the source: both directions, or the forward one."""
        return 2 * self.width if self.attention else self.width


AnySeq2SeqConfig = Annotated[LSTMSeq2SeqConfig | GRUSeq2SeqConfig, Field(discriminator="kind")]
