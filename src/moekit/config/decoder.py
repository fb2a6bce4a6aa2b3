"""The causal decoder's configuration, which GPT-2, Llama, Falcon, Mixtral, Gemma, Grok-1 and DeepSeek-V3 all are."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from moekit.config.attention import AnyAttentionConfig, AttentionConfig
from moekit.config.config_base import MAX_LAYERS, Config, Count, Positive
from moekit.config.feed_forward import DenseConfig, FeedForwardConfig, MoEConfig
from moekit.config.norm import NormConfig

BlockName = Literal["pre", "sandwich", "parallel", "parallel_shared"]


class LayerConfig(Config):
    """One layer of a decoder: its attention, its feed-forward part, and their places around the residual stream.

    Attributes:
        block: `pre` is h += attention(norm(h)), h += feed_forward(norm(h)); `sandwich` norms what is added, too
            (Grok-1, Gemma 3); `parallel` adds both at once, each with its norm, `parallel_shared` with one norm for
            both (Falcon).
        norm: the layer's norms, those of queries and keys included.
    """

    attention: AnyAttentionConfig
    feed_forward: FeedForwardConfig
    block: BlockName = "pre"
    norm: NormConfig = NormConfig()

    @model_validator(mode="before")
    @classmethod
    def _grouped_by_default(cls, data: object) -> object:
        """Take attention without a kind for grouped attention."""
        if isinstance(data, Mapping) and isinstance(data.get("attention"), Mapping):
            return {**data, "attention": {"kind": "grouped"} | dict(data["attention"])}
        return data


class ModelConfig(Config):
    """A causal decoder: its layers, and what is of the whole model.

    Data (YAML, JSON) may say once what all layers share: `attention` (its `windows` repeated over the layers), `block`,
    `norm` and `norm_eps` then stand beside `layers`, which lists feed-forward parts alone. Files from before layers had
    an attention of their own are written so. In Python, `decoder_layers` does the same.

    Attributes:
        width: the width of the residual stream (D).
        context: the longest sequence in tokens.
        layers: the plan, a LayerConfig a layer.
        norm: the last norm, before the head.
        learned_positions: whether a table of `context` positions is added to embeddings.
        embedding_scale: the factor of the embeddings.
        logit_scale: the factor of the logits.
        init_std: the deviation of the normal initialisation; matrices that write to the residual stream get init_std /
            sqrt(2 * layers) (GPT-2).
    """

    also_read: ClassVar = {
        "attention": "where layers lists feed-forward parts alone",
        "block": "where layers lists feed-forward parts alone",
        "norm_eps": "where norm is missing or a name",
    }

    kind: Literal["decoder"] = "decoder"
    vocab_size: Count
    width: Count
    context: Count
    layers: Annotated[tuple[LayerConfig, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    norm: NormConfig = NormConfig()
    learned_positions: bool = False
    tie_embeddings: bool = False
    embedding_scale: Positive = 1.0
    logit_scale: Positive = 1.0
    init_std: Positive = 0.02

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, data: object) -> object:
        """Give each layer what the data say once for all of them."""
        return _spread_over_layers(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _check(self) -> Self:
        for part in self.feed_forwards:
            if part.kind == "moe" and part.router.kind == "expert_choice" and not part.router.leaky:
                raise ValueError(
                    "an expert-choice router in a causal decoder sees the tokens that it has to predict; set leaky: "
                    "true on the router if that is what you want to study"
                )
        return self

    @property
    def feed_forwards(self) -> tuple[FeedForwardConfig, ...]:
        """The feed-forward part of each layer."""
        return tuple(layer.feed_forward for layer in self.layers)

    def with_feed_forwards(self, feed_forwards: Sequence[FeedForwardConfig]) -> Self:
        """Describe the same model with other feed-forward parts, one for each layer."""
        layers = tuple(
            layer.model_copy(update={"feed_forward": part})
            for layer, part in zip(self.layers, feed_forwards, strict=True)
        )
        return self.model_copy(update={"layers": layers})


def decoder_layers(
    attention: AnyAttentionConfig,
    feed_forwards: Sequence[FeedForwardConfig],
    *,
    windows: Sequence[int | None] = (),
    block: BlockName = "pre",
    norm: NormConfig | None = None,
) -> tuple[LayerConfig, ...]:
    """Make the layers of a decoder that differ in their feed-forward parts and windows alone.

    Args:
        attention: the attention of all layers.
        feed_forwards: the feed-forward part of each layer.
        windows: the windows of grouped attention, repeated over the layers; where there are none, all have that of
            `attention`.
        block: the form of all layers.
        norm: the norms of all layers; None for the default.
    """
    layers = []
    for index, part in enumerate(feed_forwards):
        if windows and isinstance(attention, AttentionConfig):
            attention = attention.model_copy(update={"window": windows[index % len(windows)]})
        layers.append(LayerConfig(attention=attention, feed_forward=part, block=block, norm=norm or NormConfig()))
    return tuple(layers)


def _spread_over_layers(given: Mapping[Any, Any]) -> dict[Any, Any]:
    data = dict(given)
    norm = data.pop("norm", None)
    if norm is None or isinstance(norm, str):
        norm = {"kind": norm or "rms"}
        if "norm_eps" in data:
            norm["eps"] = data.pop("norm_eps")
    data["norm"] = norm
    layers = data.get("layers")
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not any(map(_is_feed_forward, layers)):
        return data
    shared = {key: data.pop(key) for key in ("attention", "block") if key in data} | {"norm": norm}
    windows: Any = None
    if isinstance(shared.get("attention"), Mapping):
        attention = {"kind": "grouped"} | dict(shared["attention"])
        windows = attention.pop("windows", None)
        shared["attention"] = attention
    if not (isinstance(windows, Sequence) and windows and not isinstance(windows, str)):
        windows = None if windows is None else (windows,)
    data["layers"] = [
        _layer(part, shared, windows[index % len(windows)] if windows else None)
        for index, part in enumerate(layers[: MAX_LAYERS + 1])
    ]
    return data


def _layer(part: Any, shared: dict[str, Any], window: Any) -> Any:
    if not _is_feed_forward(part):
        return part
    layer = {**shared, "feed_forward": part}
    if window is not None:
        layer["attention"] = {**shared["attention"], "window": window}
    return layer


def _is_feed_forward(part: object) -> bool:
    if isinstance(part, Mapping):
        return not {"attention", "feed_forward"} & part.keys()
    return isinstance(part, DenseConfig | MoEConfig)
