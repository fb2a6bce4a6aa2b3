"""The whole encoder-decoder against itself step by step, under padding, and GShard against NumPy.

Parity with transformers is in tests/families/test_t5.py and test_switch.py.
"""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.models.gshard_oracle import logits as oracle_logits

from moekit.config import (
    DenseConfig,
    ExpertChoiceConfig,
    FeedForwardConfig,
    GShardConfig,
    MoEConfig,
    SoftmaxTopKConfig,
    SwitchConfig,
)
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.models.encoder_decoder import EncoderDecoder
from moekit.moe import Routing

DENSE = DenseConfig(width=24, activation="relu", gated=False)
GATED = DenseConfig(width=24, activation="gelu_tanh")
SWITCH = MoEConfig(
    experts=4, expert_width=16, activation="relu", gated=False, router=SwitchConfig(capacity_factor=None)
)
MIXED = MoEConfig(experts=4, expert_width=16, router=SoftmaxTopKConfig(top_k=2), branch="residual", branch_width=8)
VOCAB, WIDTH = 50, 32


def config_of(*layers: FeedForwardConfig, **changes: Any) -> EncoderDecoderConfig:
    values: dict[str, Any] = {"vocab_size": VOCAB, "width": WIDTH, "heads": 3, "head_width": 8, "max_distance": 20}
    return EncoderDecoderConfig(encoder_layers=layers, decoder_layers=layers, **values | changes)


CONFIGS = {
    "t5": config_of(DENSE, DENSE),
    "v1.1": config_of(GATED, GATED, tie_embeddings=False, scaled_logits=False),
    "switch": config_of(DENSE, SWITCH),
    "learned positions, two vocabularies": config_of(
        MIXED, DENSE, positions="learned", context=24, target_vocab_size=40, norm="layer"
    ),
}


@pytest.fixture(params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> EncoderDecoderConfig:
    return CONFIGS[request.param]


def ids(config: EncoderDecoderConfig, rows: int, source: int, target: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(2, config.vocab_size, (rows, source)), torch.randint(
        2, config.target_vocabulary, (rows, target)
    )


@pytest.mark.parametrize("prompt", [1, 5])
def test_step_by_step_equals_the_whole_sequence(config: EncoderDecoderConfig, prompt: int) -> None:
    model = EncoderDecoder(config).eval()
    source, target = ids(config, 3, 11, 20)
    real = torch.arange(11) < torch.tensor([[11], [7], [2]])
    with torch.no_grad():
        whole = model(source, target, source_real_BS=real)
        cache = model.new_cache(3, 20)
        steps = [model(source, target[:, :prompt], source_real_BS=real, cache=cache)]
        steps.append(model(None, target[:, prompt : prompt + 2], cache=cache))
        steps += [model(None, target[:, t : t + 1], cache=cache) for t in range(prompt + 2, 20)]
    assert cache.length == 20
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5 * whole.std().item())


def test_no_token_sees_its_future_and_all_see_the_source(config: EncoderDecoderConfig) -> None:
    model = EncoderDecoder(config).eval()
    source, target = ids(config, 1, 9, 12)
    changed = target.clone()
    changed[0, 8:] = 2 + (changed[0, 8:] - 1) % (config.target_vocabulary - 2)
    other = source.clone()
    other[0, -1] = 2 + (other[0, -1] - 1) % (config.vocab_size - 2)
    with torch.no_grad():
        before, after, elsewhere = model(source, target), model(source, changed), model(other, target)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before[:, 8:], after[:, 8:])
    assert not torch.isclose(before, elsewhere).all(-1).any()


def test_padding_changes_nothing(config: EncoderDecoderConfig) -> None:
    """Behind the source and behind the target, whatever tokens it is made of."""
    model = EncoderDecoder(config).eval()
    source, target = ids(config, 2, 9, 7)
    padding, target_padding = ids(config, 2, 4, 5)
    padded_source, padded_target = torch.cat((source, padding), 1), torch.cat((target, target_padding), 1)
    source_real, target_real = torch.arange(13).expand(2, -1) < 9, torch.arange(12).expand(2, -1) < 7
    routings: list[Routing] = []
    with torch.no_grad():
        plain = model(source, target)
        padded = model(
            padded_source, padded_target, source_real_BS=source_real, target_real_BT=target_real, routings=routings
        )
        seen = model(padded_source, padded_target)
    torch.testing.assert_close(padded[:, :7], plain, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(seen[:, :7], plain, rtol=1e-4, atol=1e-6)  # the mask is what did it
    moe = len(model.moe_layers)
    assert [int(routing.sums["tokens"]) for routing in routings] == [18] * (moe // 2) + [14] * (moe // 2)


def test_a_source_of_padding_alone_gives_numbers() -> None:
    model = EncoderDecoder(CONFIGS["t5"]).eval()
    source, target = ids(model.config, 2, 4, 5)
    real = torch.tensor([[True] * 4, [False] * 4])
    assert model(source, target, source_real_BS=real).isfinite().all()


def test_relative_positions_may_be_padded_in_front() -> None:
    """Distances are all that counts."""
    model = EncoderDecoder(CONFIGS["t5"]).eval()
    source, target = ids(model.config, 2, 9, 7)
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.int64), source), 1)
    with torch.no_grad():
        shifted = model(padded, target, source_real_BS=torch.arange(12).expand(2, -1) >= 3)
        torch.testing.assert_close(shifted, model(source, target), rtol=1e-4, atol=1e-6)


def test_log_prob_and_loss_are_those_of_the_logits(config: EncoderDecoderConfig) -> None:
    model = EncoderDecoder(config.model_copy(update={"start_token": 4})).eval()
    source, target = ids(config, 2, 6, 5)
    target_real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    source_real = torch.ones_like(source, dtype=torch.bool)
    with torch.no_grad():
        inputs = torch.cat((torch.full((2, 1), 4), target[:, :-1]), 1)
        expected = model(source, inputs).log_softmax(-1).gather(2, target[..., None])[..., 0]
        torch.testing.assert_close(model.target_log_prob(source, target), expected)
        torch.testing.assert_close(model.log_prob(target, source_BS=source), expected[:, 1:])
        routings: list[Routing] = []
        batch = {"source": source, "source_real": source_real, "target": target, "target_real": target_real}
        loss, count = model.loss(batch, routings)
        assert len(routings) == len(model.moe_layers)
        assert count == 7
        torch.testing.assert_close(loss, -expected[target_real].sum(), rtol=1e-5, atol=0)
        # Without a source: an empty one.
        empty = torch.full((2, 1), 1)
        torch.testing.assert_close(model.log_prob(target), model.log_prob(target, source_BS=empty))
        no_end = EncoderDecoder(config.model_copy(update={"end_token": None, "pad_token": 3})).eval()
        no_end.load_state_dict(model.state_dict())
        torch.testing.assert_close(no_end.log_prob(target), no_end.log_prob(target, source_BS=empty + 2))


def test_an_untrained_model_knows_nothing(config: EncoderDecoderConfig) -> None:
    """Logits begin with a deviation of about 1, so log p is that of a uniform guess less about a half."""
    model = EncoderDecoder(config).eval()
    _, target = ids(config, 16, 1, 20)
    with torch.no_grad():
        logits = model(torch.full((16, 1), 1), target)
        log_prob = model.log_prob(target)
    assert log_prob.shape == (16, 19)
    assert 0.7 < logits.std() < 1.4
    assert log_prob.mean().item() == pytest.approx(-math.log(config.target_vocabulary) - 0.5, abs=0.35)


def test_built_on_meta_and_filled_it_is_the_same_model(config: EncoderDecoderConfig) -> None:
    model = EncoderDecoder(config).eval()
    with torch.device("meta"):
        shell = EncoderDecoder(config).eval()
    shell = shell.to_empty(device="cpu")
    for parameter in shell.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    shell.load_state_dict(model.state_dict(), strict=True)
    source, target = ids(config, 1, 5, 6)
    with torch.no_grad():
        assert torch.equal(shell(source, target), model(source, target))


@pytest.mark.parametrize("name", ["switch", "learned positions, two vocabularies"])
def test_backends_agree_on_loss_and_every_gradient(name: str) -> None:
    config = CONFIGS[name].model_copy(update={"init_factor": 1.5})
    models = {backend: EncoderDecoder(config, backend).double().eval() for backend in ("reference", "torch")}  # type: ignore[arg-type]
    models["torch"].load_state_dict(models["reference"].state_dict())
    source, target = ids(config, 2, 9, 8)
    for model in models.values():
        (-model.target_log_prob(source, target).sum()).backward()
    for (name, a), b in zip(models["torch"].named_parameters(), models["reference"].parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert (a.grad - b.grad).norm() <= 1e-10 * b.grad.norm(), name
        assert b.grad.norm() > 0, name


@pytest.mark.parametrize("factor", [1.0, 0.5, 8.0])
def test_gshard_is_that_of_numpy(factor: float) -> None:
    """A tiny GShard in evaluation, with and without choices that find their expert full."""
    moe = MoEConfig(
        experts=4, expert_width=16, activation="relu", gated=False, router=GShardConfig(capacity_factor=factor)
    )
    config = config_of(DENSE, moe, positions="learned", context=12, target_vocab_size=40)
    model = EncoderDecoder(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms, too
    source, target = ids(config, 2, 10, 8)
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    expected, dropped = oracle_logits(weights, source.numpy(), target.numpy(), 3, factor, config.norm_eps)
    routings: list[Routing] = []
    with torch.no_grad():
        got = model(source, target, routings=routings)
    assert (got - torch.from_numpy(expected)).abs().max() <= 1e-11 * expected.std()
    assert dropped == sum(int((routing.sums["chosen"] - routing.counts_E).sum()) for routing in routings)
    assert (dropped > 0) == (factor < 8)


def test_what_does_not_fit_is_refused() -> None:
    model = EncoderDecoder(CONFIGS["learned positions, two vocabularies"])
    source, target = ids(model.config, 1, 25, 25)
    with pytest.raises(ValueError, match="25 tokens are more than the context of 24"):
        model(source, target[:, :3])
    with pytest.raises(ValueError, match="25 tokens are more than the context of 24"):
        model(source[:, :3], target)
    with pytest.raises(ValueError, match="no source"):
        model(None, target[:, :3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "learned"}, "context goes with learned positions"),
        ({"context": 5}, "context goes with learned positions"),
        ({"max_distance": 16}, "must be larger"),
        ({"pad_token": 50}, "not in the vocabulary"),
        ({"end_token": 45, "target_vocab_size": 40}, "not in the vocabulary"),
        ({"decoder_layers": (MoEConfig(experts=2, expert_width=4, router=ExpertChoiceConfig()),)}, "expert-choice"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    values = config_of(DENSE).model_dump() | changes
    with pytest.raises(ValidationError, match=message):
        EncoderDecoderConfig.model_validate(values)
