"""What a contestant costs, counted from its configuration, against the models themselves."""

import pytest
import torch
from pydantic import TypeAdapter

from moekit.comparison.spec.model_costs import ContestantConfig, costs_of
from moekit.config import LSTMConfig, ModelConfig, NGramConfig
from moekit.counting import count_parameters, lstm_forward_flops_per_token, training_flops_per_token
from moekit.models import build

LSTMS = [
    LSTMConfig(vocab_size=256, embedding_width=24, widths=(24,)),
    LSTMConfig(vocab_size=256, embedding_width=24, widths=(40, 24)),
    LSTMConfig(vocab_size=256, embedding_width=24, widths=(40, 16), tie_embeddings=False),
]


@pytest.mark.parametrize("config", LSTMS, ids=["one layer", "two", "untied"])
def test_an_lstm_is_counted_as_it_is_built(config: LSTMConfig) -> None:
    costs = costs_of(config, 128)
    parameters = sum(parameter.numel() for parameter in build(config).parameters())
    assert costs.params_total == costs.params_active == sum(costs.params_by_part.values()) == parameters
    assert costs.weight_bytes == 2 * parameters
    assert costs.inference_flops_per_token == lstm_forward_flops_per_token(config)
    assert costs.flops_per_token == 3 * lstm_forward_flops_per_token(config)
    # 2 a weight and token: all matrices but the embedding, which is multiplied with only as the head.
    head = build(config).head
    assert isinstance(head, torch.nn.Linear)
    matrices = [p for name, p in build(config).named_parameters() if p.dim() == 2 and name.startswith("layers")]
    assert costs.inference_flops_per_token == 2 * (sum(p.numel() for p in matrices) + head.weight.numel())


def test_a_decoder_is_counted_as_before(any_config: ModelConfig) -> None:
    costs, parameters = costs_of(any_config, 12), count_parameters(any_config)
    assert (costs.params_total, costs.params_active) == (parameters.total, parameters.active)
    assert costs.flops_per_token == training_flops_per_token(any_config, 12)


def test_an_ngram_model_multiplies_nothing() -> None:
    costs = costs_of(NGramConfig(order=5), 128)
    assert costs.flops_per_token == costs.inference_flops_per_token == 0
    assert (costs.params_total, costs.params_active, costs.weight_bytes) == (None, 5, None)


def test_files_from_before_there_were_kinds_hold_decoders(any_config: ModelConfig) -> None:
    old = any_config.model_dump()
    del old["kind"]
    assert TypeAdapter(ContestantConfig).validate_python(old) == any_config
    assert TypeAdapter(ContestantConfig).validate_python(LSTMS[0].model_dump()) == LSTMS[0]
