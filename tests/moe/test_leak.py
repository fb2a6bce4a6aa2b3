"""Does the future reach the past? A later token is changed and earlier outputs of a small decoder compared."""

from typing import Any

import pytest
import torch
from tests.moe.routers import samples
from torch import Tensor

from moekit.config import AttentionConfig, ModelConfig, MoEConfig
from moekit.models import Decoder

CONTEXT, VOCAB, CHANGED = 24, 31, 16


def model(kind: str, **changes: Any) -> Decoder:
    config = ModelConfig(
        vocab_size=VOCAB,
        width=16,
        context=CONTEXT,
        attention=AttentionConfig(heads=2, kv_heads=1, head_width=8),
        layers=(MoEConfig(experts=4, expert_width=8, router=samples.config(kind, **changes)),) * 2,
        init_std=0.3,
    )
    torch.manual_seed(3)
    made = Decoder(config, backend="reference").double()
    for layer in made.moe_layers:
        for parameter in layer.router.parameters():
            torch.nn.init.normal_(parameter)
    return made


def leak(made: Decoder) -> Tensor:
    """Per sequence, how far the logits before the changed token moved, relative to their spread."""
    tokens_BT = torch.randint(0, VOCAB, (16, CONTEXT), generator=torch.Generator().manual_seed(1))
    outputs = []
    for replacement in (tokens_BT[:, CHANGED:], (tokens_BT[:, CHANGED:] + 5) % VOCAB):
        torch.manual_seed(9)
        changed_BT = torch.cat([tokens_BT[:, :CHANGED], replacement], dim=1)
        with torch.no_grad():
            # One sequence at a time: what is asked is whether a text's own future leaks.
            outputs.append(torch.cat([made(row_T[None])[:, :CHANGED] for row_T in changed_BT]))
    before, after = outputs
    return (after - before).abs().amax((1, 2)) / before.std()


# Matrix products of other sizes may round otherwise; everything larger is a leak.
ROUNDING = 1e-12


@pytest.mark.parametrize("kind", samples.TOKEN_CHOICE)
def test_without_capacity_no_token_choice_leaks_in_evaluation(kind: str) -> None:
    assert leak(model(kind, **samples.dropless(kind)).eval()).max() <= ROUNDING


@pytest.mark.parametrize("kind", ["softmax_top_k", "noisy_top_k", "switch", "gshard", "sigmoid_bias", "hash"])
def test_without_capacity_no_token_choice_leaks_in_training(kind: str) -> None:
    assert leak(model(kind, **samples.dropless(kind)).train()).max() <= ROUNDING


@pytest.mark.parametrize("kind", [kind for kind in samples.TOKEN_CHOICE if kind != "gshard"])
def test_a_capacity_served_in_token_order_does_not_leak(kind: str) -> None:
    assert leak(model(kind, capacity_factor=0.5).eval()).max() <= ROUNDING


def test_gshards_queue_leaks_where_a_capacity_drops() -> None:
    """Later first choices go before earlier second ones."""
    leaks = leak(model("gshard").eval())
    assert (leaks > 1e-3).float().mean() > 0.5


def test_sinkhorn_leaks_in_training_through_the_choice() -> None:
    leaks = leak(model("sinkhorn").train())
    assert (leaks > 1e-3).float().mean() > 0.5


@pytest.mark.parametrize("training", [True, False])
def test_expert_choice_leaks(training: bool) -> None:
    """docs/routers.md gives these figures."""
    leaks = leak(model("expert_choice").train(training))
    assert (leaks > 1e-3).float().mean() >= 0.9
    assert leaks.median() > 0.1


def test_expert_choice_is_refused_in_a_decoder_unless_it_says_leaky() -> None:
    with pytest.raises(ValueError, match="sees the tokens that it has to predict"):
        model("expert_choice", leaky=False)
