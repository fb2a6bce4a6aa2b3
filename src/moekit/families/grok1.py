"""Grok-1's published configuration. Its weights are pickled JAX arrays, which moekit does not read."""

from moekit.config import AttentionConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig, decoder_layers
from moekit.families.family import Preset

PRESETS = {
    "grok-1": Preset(
        config=ModelConfig(
            vocab_size=131_072,
            width=6144,
            context=8192,
            layers=decoder_layers(
                AttentionConfig(heads=48, kv_heads=8, head_width=128, soft_cap=30.0),
                (
                    MoEConfig(
                        experts=8,
                        expert_width=32_768,
                        router=SoftmaxTopKConfig(top_k=2, renormalize=False),
                        activation="gelu_tanh",
                    ),
                )
                * 64,
                block="sandwich",
            ),
            tie_embeddings=True,
            embedding_scale=78.38367176906169,
            logit_scale=0.5773502691896257,
        ),
        source="xai-org/grok-1, run.py and model.py",
        parameters=314e9,
    ),
}
