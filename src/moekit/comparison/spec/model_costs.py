"""The configurations that can take part in a comparison, and what they cost by themselves."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from moekit.config import LSTMConfig, ModelConfig, NGramConfig
from moekit.counting import (
    count_lstm_parameters,
    count_parameters,
    inference_flops_per_token,
    lstm_forward_flops_per_token,
    training_flops_per_token,
)


def _usual_kind(config: Any) -> Any:
    """Take a decoder where there is no kind: files from before there were others have none."""
    return {"kind": "decoder"} | config if isinstance(config, dict) else config


ContestantConfig = Annotated[
    Annotated[ModelConfig | LSTMConfig | NGramConfig, Field(discriminator="kind")], BeforeValidator(_usual_kind)
]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a configuration says of its model.

    flops_per_token: of training, forward and backward, at the full context.
    inference_flops_per_token: forward. params_total, weight_bytes (at two bytes each, as served in bf16): None where
    only the trained model knows; params_by_part is empty then. params_active: those that one token needs.
    """

    params_total: int | None
    params_active: int
    params_by_part: dict[str, int]
    flops_per_token: int
    inference_flops_per_token: int
    weight_bytes: int | None


def costs_of(config: ContestantConfig, context: int) -> Costs:
    """Count parameters and FLOPs of a contestant in sequences of `context` tokens.

    An n-gram model multiplies nothing, so its FLOPs are 0. For one token it looks up at most one probability and, for
    each longer context, a backoff weight: a number an order.
    """
    match config:
        case NGramConfig():
            return Costs(
                params_total=None,
                params_active=config.order,
                params_by_part={},
                flops_per_token=0,
                inference_flops_per_token=0,
                weight_bytes=None,
            )
        case LSTMConfig():
            parameters, forward = count_lstm_parameters(config), lstm_forward_flops_per_token(config)
            training = 3 * forward
        case ModelConfig():
            parameters, forward = count_parameters(config), inference_flops_per_token(config, context)
            training = training_flops_per_token(config, context)
    return Costs(
        params_total=parameters.total,
        params_active=parameters.active,
        params_by_part=parameters.by_part,
        flops_per_token=training,
        inference_flops_per_token=forward,
        weight_bytes=2 * parameters.total,
    )
