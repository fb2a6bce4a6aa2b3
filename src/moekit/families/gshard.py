"""GShard's translation models, and moekit's own folders for any encoder-decoder.

The paper's models were never published, and transformers has no class for them.
"""

from moekit.config import DenseConfig, FeedForwardConfig, GShardConfig, MoEConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.families.family import Preset
from moekit.families.whole import whole_family


def gshard(experts: int, layers: int) -> EncoderDecoderConfig:
    """Describe MoE(`experts` E, `layers` L) of arXiv 2006.16668, table 1.

    Half of the layers are the encoder's, and every other one of each stack has experts.
    From the paper (appendix A.2): D 1024, F 8192, 16 heads of 128, vocabularies of 64,000 (source) and 32,000 (target),
    ReLU. It leaves out norms, positions and the output; these are as in tensorflow/lingvo, gshard_builder.py and
    SharedEmbeddingSoftmaxLayer: RMSNorm before each part and at the end, no scale of the scores, learned positions, an
    output tied to the target's table and scaled by D^-1/2. How many positions there were is unknown; 1024 are 0.0003 %
    of the largest model. The capacity 2 N / E is that of capacity_factor 1, here of the whole batch as one group.
    """
    dense = DenseConfig(width=8192, activation="relu", gated=False)
    sparse = MoEConfig(experts=experts, expert_width=8192, activation="relu", gated=False, router=GShardConfig())
    pair: tuple[FeedForwardConfig, ...] = (dense, sparse)
    return EncoderDecoderConfig(
        vocab_size=64_000,
        target_vocab_size=32_000,
        width=1024,
        heads=16,
        head_width=128,
        encoder_layers=pair * (layers // 4),
        decoder_layers=pair * (layers // 4),
        positions="learned",
        context=1024,
    )


_SOURCE = "arXiv 2006.16668, table 1 and appendix A.2; tensorflow/lingvo gshard_builder.py for what these leave out"

FAMILY = whole_family(
    EncoderDecoderConfig,
    "moekit_encoder_decoder",
    "EncoderDecoder",
    {
        name: Preset(config=gshard(experts, layers), source=_SOURCE, parameters=parameters)
        for name, experts, layers, parameters in (
            ("gshard-12b", 128, 12, 12.5e9),
            ("gshard-37b", 128, 36, 37e9),
            ("gshard-50b", 512, 12, 50e9),
            ("gshard-150b", 512, 36, 150e9),
            ("gshard-200b", 2048, 12, 200e9),
            ("gshard-600b", 2048, 36, 600e9),
        )
    },
)
