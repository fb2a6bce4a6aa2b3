"""The encoder: against transformers' BERT, and its scores and loss against slow definitions of them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.families.layout_copies import copy_in, randomize
from torch import Tensor

from moekit.config import DenseConfig, MoEConfig, SoftmaxTopKConfig
from moekit.config.encoder import EncoderConfig
from moekit.core.errors import MoekitError
from moekit.families.bert import layout
from moekit.models import encoder
from moekit.models.encoder import NOT_PREDICTED, Encoder
from moekit.moe import Routing

VOCAB, CONTEXT = 61, 14
SPARSE = MoEConfig(
    experts=4, expert_width=12, router=SoftmaxTopKConfig(top_k=2), gated=False, activation="gelu", branch="none"
)


def make_config(*, next_sentence: bool = True, activation: Any = "gelu", **more: Any) -> EncoderConfig:
    dense = DenseConfig(width=40, activation=activation, gated=False, bias=True)
    settings = {"layers": (dense, dense), "mask_token": 5, "head_activation": activation} | more
    return EncoderConfig(vocab_size=VOCAB, width=32, context=CONTEXT, heads=4, next_sentence=next_sentence, **settings)


def make_model(config: EncoderConfig) -> Encoder:
    model = Encoder(config).eval()
    randomize(model)
    return model


def make_theirs(kind: str, activation: str = "gelu") -> Any:
    transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install moekit[peers])")
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=CONTEXT,
        hidden_act=activation,
    )
    theirs = getattr(transformers, kind)(config).eval()
    randomize(theirs)
    return theirs


def as_ours(theirs: Any, config: EncoderConfig) -> Encoder:
    model = Encoder(config).eval()
    copy_in(theirs.state_dict(), model, layout(config))
    return model


def some_inputs() -> tuple[Tensor, Tensor, Tensor]:
    tokens_BT = torch.randint(0, VOCAB, (3, CONTEXT))
    types_BT = (torch.arange(CONTEXT) >= 6).long().expand(3, -1)
    real_BT = torch.arange(CONTEXT) < torch.tensor([[CONTEXT], [9], [3]])
    return tokens_BT, types_BT, real_BT


def check_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert expected.std() > 0.01
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize(("theirs_name", "ours_name"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("relu", "relu")])
def test_parity_of_both_heads(theirs_name: str, ours_name: str) -> None:
    theirs = make_theirs("BertForPreTraining", theirs_name)
    ours = as_ours(theirs, make_config(activation=ours_name))
    tokens_BT, types_BT, real_BT = some_inputs()
    with torch.no_grad():
        expected = theirs(tokens_BT, token_type_ids=types_BT, attention_mask=real_BT.long())
        got = ours(tokens_BT, types_BT=types_BT, real_BT=real_BT)
        check_close(got.logits_BTV, expected.prediction_logits)
        check_close(got.next_sentence_B2, expected.seq_relationship_logits)
        check_close(ours(tokens_BT).logits_BTV, theirs(tokens_BT).prediction_logits)
        # The inputs matter: without them it is another function.
        assert (ours(tokens_BT).logits_BTV - got.logits_BTV).abs().max() > 0.01 * got.logits_BTV.std()


def test_parity_without_the_next_sentence_head() -> None:
    theirs = make_theirs("BertForMaskedLM")
    ours = as_ours(theirs, make_config(next_sentence=False))
    tokens_BT, types_BT, real_BT = some_inputs()
    with torch.no_grad():
        expected = theirs(tokens_BT, token_type_ids=types_BT, attention_mask=real_BT.long()).logits
        got = ours(tokens_BT, types_BT=types_BT, real_BT=real_BT)
    check_close(got.logits_BTV, expected)
    assert got.next_sentence_B2 is None


def test_loss_is_that_of_transformers() -> None:
    """BertForPreTraining's mean of masked tokens plus mean of pairs, times our number of targets."""
    theirs = make_theirs("BertForPreTraining")
    ours = as_ours(theirs, make_config())
    tokens_BT, types_BT, real_BT = some_inputs()
    labels_BT = torch.where(torch.rand(3, CONTEXT) < 0.3, torch.randint(0, VOCAB, (3, CONTEXT)), NOT_PREDICTED)
    pairs_B = torch.tensor([0, 1, 1])
    expected = theirs(
        tokens_BT,
        token_type_ids=types_BT,
        attention_mask=real_BT.long(),
        labels=labels_BT,
        next_sentence_label=pairs_B,
    ).loss
    batch = {"tokens": tokens_BT, "types": types_BT, "real": real_BT, "labels": labels_BT}
    loss, targets = ours.loss(batch | {"next_sentence": pairs_B})
    assert targets == int((labels_BT >= 0).sum())
    torch.testing.assert_close(loss / targets, expected, rtol=1e-5, atol=0)
    without, _ = ours.loss(batch)
    assert without < loss


@pytest.mark.parametrize("tokens_at_once", [1, 30, 1 << 13])
def test_log_prob_masks_each_position_in_turn(tokens_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_TOKENS_AT_ONCE", tokens_at_once)
    model = make_model(make_config())
    tokens_BT = torch.randint(6, VOCAB, (2, 9))
    with torch.no_grad():
        got = model.log_prob(tokens_BT)
        assert got.shape == (2, 8)
        for row in range(2):
            for place in range(1, 9):
                masked = tokens_BT[row : row + 1].clone()
                masked[0, place] = 5
                expected = model(masked).logits_BTV[0, place].log_softmax(-1)[tokens_BT[row, place]]
                torch.testing.assert_close(got[row, place - 1], expected, rtol=1e-4, atol=1e-5)


def test_log_prob_of_a_token_does_not_see_it_but_all_others() -> None:
    model = make_model(make_config())
    tokens_BT = torch.randint(6, VOCAB, (1, 8))
    with torch.no_grad():
        total = torch.zeros(())
        for token in range(VOCAB):
            changed = tokens_BT.clone()
            changed[0, 3] = token
            total += model.log_prob(changed)[0, 2].exp()
        # One distribution over the vocabulary, whatever stands there.
        assert total.item() == pytest.approx(1, rel=1e-4)
        later = tokens_BT.clone()
        later[0, 7] = 6 + (later[0, 7] - 5) % (VOCAB - 6)
        assert not torch.allclose(model.log_prob(later)[0, 0], model.log_prob(tokens_BT)[0, 0])


def test_log_prob_takes_types_and_padding() -> None:
    model = make_model(make_config())
    tokens_BT, types_BT, real_BT = some_inputs()
    with torch.no_grad():
        got = model.log_prob(tokens_BT, types_BT=types_BT, real_BT=real_BT)
        alone = model.log_prob(tokens_BT[1:2, :9], types_BT=types_BT[1:2, :9])
    torch.testing.assert_close(got[1, :8], alone[0], rtol=1e-4, atol=1e-5)


def test_without_a_mask_token_nothing_is_scored() -> None:
    with pytest.raises(MoekitError, match="mask_token"):
        Encoder(make_config(mask_token=None)).log_prob(torch.zeros(1, 4, dtype=torch.int64))


def test_an_untrained_model_knows_nothing() -> None:
    with torch.no_grad():
        log_prob = Encoder(make_config()).eval().log_prob(torch.randint(6, VOCAB, (4, 12)))
    assert log_prob.mean().item() == pytest.approx(-math.log(VOCAB), rel=0.02)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="more than the context of 14"):
        Encoder(make_config())(torch.zeros(1, 15, dtype=torch.int64))


def test_experts_compute_what_is_real_and_everything_learns() -> None:
    dense = DenseConfig(width=40, activation="gelu", gated=False, bias=True)
    model = Encoder(make_config(layers=(dense, SPARSE)))
    tokens_BT, types_BT, real_BT = some_inputs()
    routings: list[Routing] = []
    labels_BT = torch.where(real_BT, tokens_BT, NOT_PREDICTED)
    batch = {"tokens": tokens_BT, "types": types_BT, "real": real_BT, "labels": labels_BT}
    loss, targets = model.loss(batch | {"next_sentence": torch.tensor([0, 1, 0])}, routings)
    assert targets == int(real_BT.sum())
    assert len(routings) == len(model.moe_layers) == 1
    assert routings[0].counts_E.sum() == 2 * real_BT.sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_padding_changes_nothing_for_experts_either() -> None:
    model = make_model(make_config(layers=(SPARSE, SPARSE)))
    tokens_BT, types_BT, real_BT = some_inputs()
    with torch.no_grad():
        padded = model(tokens_BT, types_BT=types_BT, real_BT=real_BT).logits_BTV[1, :9]
        alone = model(tokens_BT[1:2, :9], types_BT=types_BT[1:2, :9]).logits_BTV[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def test_it_builds_without_memory() -> None:
    with torch.device("meta"):
        model = Encoder(make_config(layers=(SPARSE,)))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())


def test_weights_come_from_the_seed() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(Encoder(make_config()))
    first, again, other = (model.embedding.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.02, rel=0.1)
    assert F.mse_loss(models[0].embedding_norm.weight, torch.ones(32)) == 0


@pytest.mark.parametrize("wrong", [{"mask_token": VOCAB}, {"heads": 5}])
def test_what_cannot_be_built_is_refused(wrong: dict[str, int]) -> None:
    values = make_config().model_dump() | wrong
    with pytest.raises(ValueError, match=r"vocabulary of 61|multiple of heads"):
        EncoderConfig.model_validate(values)
