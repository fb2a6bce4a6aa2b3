"""The causal decoder's configuration, which GPT-2, Llama, Falcon, Mixtral, Grok-1 and DeepSeek-V3 all are."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moekit.config.attention import AnyAttentionConfig, AttentionConfig
from moekit.config.base import MAX_LAYERS, Config, Count, Positive
from moekit.config.feed_forward import FeedForwardConfig


class ModelConfig(Config):
    """A causal decoder.

    width: of the residual stream (D). layers: the plan, one feed-forward configuration a layer.
    context: the longest sequence in tokens. learned_positions: a table of `context` positions is added to embeddings.
    block: `pre` is h += attention(norm(h)), h += feed_forward(norm(h)); `sandwich` norms what is added, too (Grok-1);
    `parallel` adds both at once, each with its norm, `parallel_shared` with one norm for both (Falcon).
    embedding_scale, logit_scale: factors of the embeddings and of the logits.
    init_std: of the normal initialisation; matrices that write to the residual stream get
    init_std / sqrt(2 * layers) (GPT-2).
    """

    kind: Literal["decoder"] = "decoder"
    vocab_size: Count
    width: Count
    context: Count
    attention: AnyAttentionConfig
    layers: Annotated[tuple[FeedForwardConfig, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    block: Literal["pre", "sandwich", "parallel", "parallel_shared"] = "pre"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Positive = 1e-5
    learned_positions: bool = False
    tie_embeddings: bool = False
    embedding_scale: Positive = 1.0
    logit_scale: Positive = 1.0
    init_std: Positive = 0.02

    @model_validator(mode="before")
    @classmethod
    def _usual_attention(cls, data: object) -> object:
        """Without a kind, grouped attention."""
        if isinstance(data, dict) and isinstance(data.get("attention"), dict):
            return data | {"attention": {"kind": "grouped"} | data["attention"]}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        for layer in self.layers:
            if layer.kind == "moe" and layer.router.kind == "expert_choice" and not layer.router.leaky:
                raise ValueError(
                    "an expert-choice router in a causal decoder sees the tokens that it has to predict; set leaky: "
                    "true on the router if that is what you want to study"
                )
        return self

    def window(self, layer: int) -> int | None:
        """How far back the layer of that index looks, itself included; None for everything."""
        if not isinstance(self.attention, AttentionConfig):
            return None
        return self.attention.windows[layer % len(self.attention.windows)]
