"""XLNet: against transformers in all its modes, and that no prediction sees what it predicts."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.families.layout_copies import copy_in, randomize
from torch import Tensor

from moekit.config import DenseConfig, HashConfig, MoEConfig, SoftmaxTopKConfig
from moekit.config.xlnet import XLNetConfig
from moekit.families.xlnet import layout
from moekit.models.xlnet import XLNet, perm_mask
from moekit.moe import Routing

VOCAB, TOKENS = 53, 9
SPARSE = MoEConfig(experts=4, expert_width=12, router=SoftmaxTopKConfig(top_k=2), gated=False, activation="gelu")


def make_config(activation: Any = "gelu", **more: Any) -> XLNetConfig:
    dense = DenseConfig(width=40, activation=activation, gated=False, bias=True)
    return XLNetConfig(vocab_size=VOCAB, width=32, heads=4, **({"layers": (dense, dense)} | more))


def make_model(**more: Any) -> XLNet:
    model = XLNet(make_config(**more)).eval()
    randomize(model)
    return model


def make_theirs(**more: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install moekit[peers])")
    shape = {"vocab_size": VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 40, "mem_len": None}
    theirs = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**shape | more)).eval()
    randomize(theirs)
    return theirs


def as_ours(theirs: Any, config: XLNetConfig) -> XLNet:
    model = XLNet(config).eval()
    copy_in(theirs.state_dict(), model, layout(config))
    return model


def one_hot(targets_BM: Tensor, tokens: int = TOKENS) -> Tensor:
    return F.one_hot(targets_BM, tokens).float()


def random_order(batch: int) -> tuple[Tensor, Tensor]:
    """rank_BT with three tokens of context, the first among them so that all see something; four of the others."""
    order_BT = F.pad(torch.rand(batch, TOKENS - 1).argsort(1) + 1, (1, 0))
    rank_BT = (order_BT.argsort(1) - 2).clamp(min=0)
    return rank_BT, order_BT[:, 4:8]


def check_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert expected.std() > 0.01
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"ff_activation": "relu"}, {"activation": "relu"}),
    ({"ff_activation": "gelu_new", "clamp_len": 3}, {"activation": "gelu_tanh", "clamp": 3}),
    ({"attn_type": "uni"}, {"attention": "causal"}),
    ({"attn_type": "uni", "clamp_len": 2}, {"attention": "causal", "clamp": 2}),
]


@pytest.mark.parametrize(("theirs_more", "ours_more"), CASES)
def test_parity(theirs_more: dict[str, Any], ours_more: dict[str, Any]) -> None:
    theirs = make_theirs(**theirs_more)
    ours = as_ours(theirs, make_config(**ours_more))
    # transformers cannot broadcast its causal mask over a batch.
    batch = 1 if "attention" in ours_more else 3
    for remembered in (0, 5):
        check_parity(theirs, ours, set(), batch, remembered)
        check_parity(theirs, ours, {"types"}, batch, remembered)
        check_parity(theirs, ours, {"order"}, batch, remembered)
        check_parity(theirs, ours, {"padding"}, batch, remembered)
        check_parity(theirs, ours, {"types", "order", "padding"}, batch, remembered)


def check_parity(theirs: Any, ours: XLNet, inputs: set[str], batch: int, remembered: int) -> None:
    """The same inputs give the same logits and memories; each of them, where it is alone, matters."""
    tokens_BT = torch.randint(0, VOCAB, (batch, TOKENS))
    theirs_inputs: dict[str, Any] = {}
    ours_inputs: dict[str, Any] = {}
    if remembered:
        memories = [torch.randn(batch, remembered, 32) for _ in range(2)]
        theirs_inputs["mems"] = [memory.transpose(0, 1) for memory in memories]
        ours_inputs["memories"] = memories
    if "types" in inputs:
        types_BT = (torch.arange(TOKENS) >= 4).long().expand(batch, -1)
        theirs_inputs["token_type_ids"] = ours_inputs["types_BT"] = types_BT
    if "order" in inputs:
        rank_BT, targets_BM = random_order(batch)
        ours_inputs |= {"perm_mask_BTT": perm_mask(rank_BT), "targets_BM": targets_BM}
        theirs_inputs |= {"perm_mask": perm_mask(rank_BT).float(), "target_mapping": one_hot(targets_BM)}
    if "padding" in inputs:
        padding = [[1, 2], [], [4, 5, 6, 7, 8]]
        real_BT = torch.tensor([[place not in row for place in range(TOKENS)] for row in padding])[:batch]
        theirs_inputs["attention_mask"] = real_BT.float()
        ours_inputs["real_BT"] = real_BT
    with torch.no_grad():
        expected, got = theirs(tokens_BT, **theirs_inputs), ours(tokens_BT, **ours_inputs, remember=True)
        check_close(got.logits, expected.logits)
        assert got.memories is not None
        for mine, other in zip(got.memories, expected.mems, strict=True):
            assert mine.shape == (batch, remembered + TOKENS, 32)
            check_close(mine, other.transpose(0, 1))
        if len(inputs) == 1:
            for name in ours_inputs:
                without = ours(tokens_BT, **{key: value for key, value in ours_inputs.items() if key != name}).logits
                assert without.shape != got.logits.shape or not torch.allclose(without, got.logits, atol=1e-3), name


@pytest.mark.parametrize(("memory", "reuse"), [(None, None), (6, None), (6, 4), (12, 3)])
def test_parity_of_segment_after_segment(memory: int | None, reuse: int | None) -> None:
    theirs = make_theirs(mem_len=memory, reuse_len=reuse)
    ours = as_ours(theirs, make_config(memory=memory, reuse=reuse))
    segments = torch.randint(0, VOCAB, (3, 2, TOKENS))
    mems = memories = None
    with torch.no_grad():
        for tokens_BT in segments:
            expected = theirs(tokens_BT, mems=mems, use_mems=True)
            got = ours(tokens_BT, memories=memories, remember=True)
            check_close(got.logits, expected.logits)
            mems, memories = expected.mems, got.memories
            assert memories[0].shape[1] == mems[0].shape[0]
    if memory is None and reuse is None:
        # Causal attention over memories is that over the whole text; both ways it is not.
        causal = as_ours(theirs, make_config(attention="causal"))
        with torch.no_grad():
            whole = causal(torch.cat(list(segments), 1)).logits
            memories, parts = None, []
            for tokens_BT in segments:
                output = causal(tokens_BT, memories=memories, remember=True)
                memories = output.memories
                parts.append(output.logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_log_prob_is_prediction_one_token_at_a_time() -> None:
    """As transformers generates: the tokens so far, then a place nobody sees, whose content does not matter."""
    theirs = make_theirs()
    ours = as_ours(theirs, make_config())
    tokens_BT = torch.randint(0, VOCAB, (2, 7))
    with torch.no_grad():
        got = ours.log_prob(tokens_BT)
        assert got.shape == (2, 6)
        for place in range(1, 7):
            seen = torch.cat((tokens_BT[:, :place], torch.zeros(2, 1, dtype=torch.int64)), 1)
            # What comes before sees what comes before it: the same order of factorisation.
            mask = torch.ones(place + 1, place + 1).triu().expand(2, -1, -1)
            mapping = one_hot(torch.full((2, 1), place), place + 1)
            logits = theirs(seen, perm_mask=mask, target_mapping=mapping).logits[:, 0]
            expected = logits.log_softmax(-1).gather(1, tokens_BT[:, place : place + 1])[:, 0]
            torch.testing.assert_close(got[:, place - 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [None, (SPARSE, SPARSE)])
def test_log_prob_adds_up_to_one_and_sees_no_future(layers: Any) -> None:
    model = make_model(**({} if layers is None else {"layers": layers}))
    tokens_BT = torch.randint(0, VOCAB, (1, 6)).repeat(VOCAB, 1)
    tokens_BT[:, 3] = torch.arange(VOCAB)
    with torch.no_grad():
        got = model.log_prob(tokens_BT)
    assert got[:, 2].exp().sum().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(got[:, :2], got[:1, :2].expand(VOCAB, -1), rtol=1e-5, atol=1e-5)
    assert got[:, 3].std() > 1e-3


def test_predictions_see_lower_ranks_alone() -> None:
    model = make_model()
    rank_BT, targets_BM = random_order(1)
    tokens_BT = torch.randint(0, VOCAB, (1, TOKENS))
    with torch.no_grad():
        before = model(tokens_BT, perm_mask_BTT=perm_mask(rank_BT), targets_BM=targets_BM).logits[0]
        for place in range(TOKENS):
            changed = tokens_BT.clone()
            changed[0, place] = (changed[0, place] + 1) % VOCAB
            after = model(changed, perm_mask_BTT=perm_mask(rank_BT), targets_BM=targets_BM).logits[0]
            for before_V, after_V, target in zip(before, after, targets_BM[0].tolist(), strict=True):
                sees = bool(rank_BT[0, place] < rank_BT[0, target])
                assert torch.allclose(before_V, after_V, atol=1e-5) != sees, (place, target)


def test_a_query_that_sees_nothing_has_no_attention() -> None:
    """Where transformers and XLNet's own code would spread attention over all keys, its own token included."""
    model = make_model()
    ranks = torch.arange(1, TOKENS + 1)[None]
    logits = []
    for _ in range(2):
        tokens_BT = torch.randint(0, VOCAB, (1, TOKENS))
        output = model(tokens_BT, perm_mask_BTT=perm_mask(ranks), targets_BM=torch.tensor([[0]]))
        logits.append(output.logits)
    torch.testing.assert_close(logits[0], logits[1])
    logits[0].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_perm_mask_against_its_definition() -> None:
    rank = [0, 2, 0, 1, 3]
    got = perm_mask(torch.tensor([rank]))[0]
    for i in range(5):
        for j in range(5):
            assert bool(got[i, j]) == (not (rank[j] == 0 or rank[j] < rank[i])), (i, j)


def test_loss_is_the_sum_over_targets_and_everything_learns() -> None:
    dense = DenseConfig(width=40, activation="gelu", gated=False, bias=True)
    model = make_model(layers=(dense, SPARSE)).train()
    tokens_BT = torch.randint(0, VOCAB, (2, TOKENS))
    rank_BT, targets_BM = random_order(2)
    types_BT = (torch.arange(TOKENS) >= 4).long().expand(2, -1)
    routings: list[Routing] = []
    batch = {"tokens": tokens_BT, "rank": rank_BT, "targets": targets_BM, "types": types_BT}
    loss, targets = model.loss(batch, routings)
    assert targets == 8
    assert len(routings) == len(model.moe_layers) == 1
    assert routings[0].counts_E.sum() == 2 * 2 * (TOKENS + 4)
    logits = model(tokens_BT, perm_mask_BTT=perm_mask(rank_BT), targets_BM=targets_BM, types_BT=types_BT).logits
    expected = sum(
        -logits[row, index].log_softmax(-1)[tokens_BT[row, place]]
        for row in range(2)
        for index, place in enumerate(targets_BM[row].tolist())
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_memories_have_no_gradient() -> None:
    output = make_model().train()(torch.randint(0, VOCAB, (1, TOKENS)), remember=True)
    assert output.memories is not None
    assert not any(memory.requires_grad for memory in output.memories)


def test_an_untrained_model_knows_nothing() -> None:
    with torch.no_grad():
        log_prob = XLNet(make_config()).eval().log_prob(torch.randint(0, VOCAB, (4, 12)))
    assert log_prob.mean().item() == pytest.approx(-math.log(VOCAB), rel=0.02)


def test_it_builds_without_memory() -> None:
    with torch.device("meta"):
        model = XLNet(make_config(layers=(SPARSE,)))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())


@pytest.mark.parametrize("router", [HashConfig(), SoftmaxTopKConfig(top_k=1, renormalize=False, capacity_factor=1.0)])
def test_routers_that_tell_are_refused(router: Any) -> None:
    with pytest.raises(ValueError, match="what has to be predicted"):
        make_config(layers=(SPARSE.model_copy(update={"router": router}),))
