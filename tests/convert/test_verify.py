"""What proves conversions computes what the models compute."""

from pathlib import Path

import pytest
import torch
from tests.conftest import MOE, PLANS, SHARED, model_config
from tests.convert.dense_models import MODELS

from moekit.config import ModelConfig
from moekit.convert.verify import EXACT, Difference, compare, probe_of, tolerance
from moekit.models import Decoder
from moekit.models.stored_model import StoredModel
from moekit.models.streamed_decoder import TokenBatch

pytestmark = pytest.mark.usefixtures("quick")
BIASED = tuple(
    layer.model_copy(update={"bias": True, "gated": gated}) for layer, gated in ((MOE, False), (SHARED, True))
)
CONFIGS = MODELS | {name: model_config(layers) for name, layers in (PLANS | {"biased": BIASED}).items()}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_stream_of_layers_is_the_model(tmp_path: Path, name: str) -> None:
    """A model against itself with one weight changed: the difference is that of the loaded models' logits."""
    config: ModelConfig = CONFIGS[name]
    model = Decoder(config).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "bias" in part:
                parameter.normal_()
    model.save(tmp_path / "a")
    probe = probe_of(config.vocab_size, config.context)
    before = _logits(model, probe)
    with torch.no_grad():
        model.layers[1].feed_forward_norm.weight[3] += 0.01
    model.save(tmp_path / "b")
    expected = before - _logits(model, probe)
    found = compare(StoredModel(tmp_path / "a"), StoredModel(tmp_path / "b"), probe)
    assert found.maximum == pytest.approx(float(expected.abs().max()), rel=1e-6)
    assert found.logit_std == pytest.approx(float(before.std()), rel=1e-2)
    assert found.tokens == int(probe.real_BT.sum()) < probe.real_BT.numel()
    assert compare(StoredModel(tmp_path / "a"), StoredModel(tmp_path / "a"), probe).maximum == 0


def _logits(model: Decoder, probe: TokenBatch) -> torch.Tensor:
    with torch.no_grad():
        logits = model.double()(probe.tokens_BT, real_BT=probe.real_BT)[probe.real_BT]
    model.float()
    return logits


def test_tolerance() -> None:
    assert tolerance([1.0, 4.0, 0.5], torch.bfloat16) == EXACT
    assert tolerance([3.0], torch.float32) == EXACT
    assert tolerance([1.0, 3.0], torch.bfloat16) == 16 / 128
    assert Difference(0.0, 0.0, 1).relative == 0.0
