"""A model is its configuration: frozen, keyword-only classes that say everything about its shape.

No behaviour hangs on a model's name. A decoder is a plan of layers (`LayerConfig`), which says per layer what attention
it has and whether its feed-forward part is dense or a mixture of experts (MoE), the latter alone, with a shared expert,
or beside a residual dense branch.
Nothing here needs torch, so a configuration can be read, checked and counted (`moekit.counting`) at once.
"""

from typing import Annotated

from pydantic import Field

from moekit.config.attention import (
    AnyAttentionConfig,
    AttentionConfig,
    LatentAttentionConfig,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    RotaryConfig,
    YarnScaling,
)
from moekit.config.config_base import BYTE_VOCAB_SIZE, MAX_LAYERS, Config, Count, Layers, NonNegative, Positive
from moekit.config.decoder import BlockName, LayerConfig, ModelConfig, decoder_layers
from moekit.config.encoder import EncoderConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.config.feed_forward import ActivationName, DenseConfig, FeedForwardConfig, MoEConfig, never_learns
from moekit.config.ngram import NGramConfig
from moekit.config.norm import NormConfig
from moekit.config.recurrent import LSTMConfig
from moekit.config.routers import (
    AnyRouterConfig,
    ExpertChoiceConfig,
    GShardConfig,
    HashConfig,
    NoisyTopKConfig,
    RenormalizingConfig,
    RouterConfig,
    SigmoidBiasConfig,
    SinkhornConfig,
    SoftmaxTopKConfig,
    SwitchConfig,
    TopKConfig,
)
from moekit.config.seq2seq import GRUSeq2SeqConfig, LSTMSeq2SeqConfig
from moekit.config.xlnet import XLNetConfig

AnyModelConfig = Annotated[
    ModelConfig
    | EncoderConfig
    | EncoderDecoderConfig
    | XLNetConfig
    | LSTMConfig
    | LSTMSeq2SeqConfig
    | GRUSeq2SeqConfig
    | NGramConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "BYTE_VOCAB_SIZE",
    "MAX_LAYERS",
    "ActivationName",
    "AnyAttentionConfig",
    "AnyModelConfig",
    "AnyRouterConfig",
    "AttentionConfig",
    "BlockName",
    "Config",
    "Count",
    "DenseConfig",
    "EncoderConfig",
    "EncoderDecoderConfig",
    "ExpertChoiceConfig",
    "FeedForwardConfig",
    "GRUSeq2SeqConfig",
    "GShardConfig",
    "HashConfig",
    "LSTMConfig",
    "LSTMSeq2SeqConfig",
    "LatentAttentionConfig",
    "LayerConfig",
    "Layers",
    "LinearScaling",
    "Llama3Scaling",
    "MoEConfig",
    "ModelConfig",
    "NGramConfig",
    "NoisyTopKConfig",
    "NonNegative",
    "NormConfig",
    "Positive",
    "RenormalizingConfig",
    "RopeScaling",
    "RotaryConfig",
    "RouterConfig",
    "SigmoidBiasConfig",
    "SinkhornConfig",
    "SoftmaxTopKConfig",
    "SwitchConfig",
    "TopKConfig",
    "XLNetConfig",
    "YarnScaling",
    "decoder_layers",
    "never_learns",
]
