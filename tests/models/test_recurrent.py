"""The LSTM language model: against torch's module, against equations written out, and its regularisation one by one."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moekit.config.recurrent import LSTMConfig
from moekit.counting import lstm_forward_flops_per_token
from moekit.models.recurrent import LSTMLanguageModel

PLAIN = LSTMConfig(vocab_size=37, embedding_width=12, widths=(16, 12), init_range=0.5)
UNTIED = LSTMConfig(vocab_size=37, embedding_width=12, widths=(16, 8, 20), tie_embeddings=False)
CONFIGS = {"tied": PLAIN, "untied": UNTIED}


def with_(**changes: object) -> LSTMConfig:
    return LSTMConfig.model_validate(PLAIN.model_dump() | changes)


def tokens_of(config: LSTMConfig, batch: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (batch, length))


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("training", [False, True])
def test_values_and_gradients_are_those_of_torchs_module(name: str, training: bool) -> None:
    config = CONFIGS[name]
    model = LSTMLanguageModel(config).train(training)
    tokens_BT = tokens_of(config)
    peers = [torch.nn.LSTM(inputs, width, batch_first=True) for inputs, width in config.layer_shapes]
    for peer, layer in zip(peers, model.layers, strict=True):
        peer.load_state_dict(layer.state_dict())
    table = model.embedding.weight.detach().clone().requires_grad_()
    matrix = table if config.tie_embeddings else model.head.weight.detach().clone().requires_grad_()
    x = table[tokens_BT]
    for peer in peers:
        x, _ = peer(x)
    expected = x @ matrix.T + model.head.bias.detach()
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    got = model(tokens_BT)
    (got * direction).sum().backward()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * expected.std().item())
    pairs = [(model.embedding.weight, table), (model.head.weight, matrix)]
    for peer, layer in zip(peers, model.layers, strict=True):
        pairs += list(zip(layer.parameters(), peer.parameters(), strict=True))
    for ours, theirs in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() <= 1e-6 * theirs.grad.norm()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_logits_are_those_of_the_equations(name: str) -> None:
    """One token, one unit after the other, in NumPy."""
    config = CONFIGS[name]
    model = LSTMLanguageModel(config).double().eval()
    tokens_BT = tokens_of(config, batch=2, length=5)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    for batch, row in enumerate(tokens_BT.tolist()):
        hidden = [np.zeros(width) for width in config.widths]
        cell = [np.zeros(width) for width in config.widths]
        for position, token in enumerate(row):
            x = weights["embedding.weight"][token]
            for index, width in enumerate(config.widths):
                prefix = f"layers.{index}."
                gates = weights[prefix + "weight_ih_l0"] @ x + weights[prefix + "bias_ih_l0"]
                gates = gates + weights[prefix + "weight_hh_l0"] @ hidden[index] + weights[prefix + "bias_hh_l0"]
                for unit in range(width):
                    take, keep, new, show = (gates[gate * width + unit] for gate in range(4))
                    cell[index][unit] = sigmoid(keep) * cell[index][unit] + sigmoid(take) * math.tanh(new)
                    hidden[index][unit] = sigmoid(show) * math.tanh(cell[index][unit])
                x = hidden[index].copy()
            logits = weights["head.weight"] @ x + weights["head.bias"]
            with torch.no_grad():
                got = model(tokens_BT)[batch, position].numpy()
            np.testing.assert_allclose(got, logits, rtol=1e-10, atol=1e-12)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_step_by_step_equals_the_whole_sequence(name: str) -> None:
    config = CONFIGS[name]
    model = LSTMLanguageModel(config).eval()
    tokens_BT = tokens_of(config)
    with torch.no_grad():
        whole = model(tokens_BT)
        state = model.new_state(3)
        parts = [model(tokens_BT[:, begin:end], state=state) for begin, end in ((0, 4), (4, 5), (5, 6), (6, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6 * whole.std().item())
    # Without the state the second part would be that of a text of its own.
    assert (model(tokens_BT[:, 4:5]) - whole[:, 4:5]).abs().max() > 1e-3 * whole.std()


def test_the_carried_state_has_no_gradient() -> None:
    model = LSTMLanguageModel(PLAIN)
    state = model.new_state(2)
    model(tokens_of(PLAIN, batch=2), state=state)
    assert not any(tensor.requires_grad for tensor in state.hidden + state.cell)


def test_log_prob_is_that_of_the_logits() -> None:
    model = LSTMLanguageModel(PLAIN).eval()
    tokens_BT = tokens_of(PLAIN)
    with torch.no_grad():
        log_prob, logits = model.log_prob(tokens_BT), model(tokens_BT)
    assert log_prob.shape == (3, 8)
    for batch in range(3):
        for position in range(8):
            row = logits[batch, position].double()
            expected = row[tokens_BT[batch, position + 1]] - row.exp().sum().log()
            assert log_prob[batch, position].item() == pytest.approx(expected.item(), abs=1e-5)


def test_in_bf16_log_prob_is_fp32_and_near() -> None:
    model = LSTMLanguageModel(PLAIN)
    tokens_BT = tokens_of(PLAIN)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.log_prob(tokens_BT)
    assert low.dtype == torch.float32
    assert (low - model.log_prob(tokens_BT)).abs().max() < 0.1


def test_loss_sums_over_the_targets_that_are_real() -> None:
    model = LSTMLanguageModel(PLAIN)
    tokens_BT = tokens_of(PLAIN)
    real_BT = torch.ones(3, 9, dtype=torch.bool)
    real_BT[0, 5:] = False
    loss, targets = model.loss({"tokens": tokens_BT, "real": real_BT})
    expected = -model.log_prob(tokens_BT[:1, :5]).sum() - model.log_prob(tokens_BT[1:]).sum()
    assert targets == 4 + 8 + 8
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.loss({"tokens": tokens_BT})[1] == 24


def test_nothing_is_random_in_evaluation() -> None:
    shares = ("word_dropout", "input_dropout", "layer_dropout", "output_dropout", "weight_dropout")
    config = with_(**dict.fromkeys(shares, 0.5), activation_penalty=2.0, temporal_penalty=1.0)
    model, plain = LSTMLanguageModel(config).eval(), LSTMLanguageModel(PLAIN).eval()
    plain.load_state_dict(model.state_dict())
    tokens_BT = tokens_of(PLAIN)
    torch.testing.assert_close(model(tokens_BT), plain(tokens_BT), rtol=0, atol=0)
    torch.testing.assert_close(
        model.loss({"tokens": tokens_BT})[0], plain.loss({"tokens": tokens_BT})[0], rtol=0, atol=0
    )
    # Control: in training it is.
    model.train()
    assert (model(tokens_BT) - model(tokens_BT)).abs().max() > 0.01


@pytest.mark.parametrize(
    "share", ["word_dropout", "input_dropout", "layer_dropout", "output_dropout", "weight_dropout"]
)
def test_each_dropout_alone_changes_training(share: str) -> None:
    model = LSTMLanguageModel(with_(**{share: 0.5}))
    tokens_BT = tokens_of(PLAIN)
    assert (model(tokens_BT) - model(tokens_BT)).abs().max() > 1e-3


def test_dropped_words_are_dropped_everywhere() -> None:
    model = LSTMLanguageModel(with_(word_dropout=0.3))
    tokens_BT = tokens_of(PLAIN, batch=20, length=50)
    embedded, plain = model._embed(tokens_BT), model.embedding(tokens_BT)
    for word in range(PLAIN.vocab_size):
        here = tokens_BT == word
        factor = (embedded[here] / plain[here]).flatten()
        assert torch.allclose(factor, factor[0].expand_as(factor), atol=1e-5)
        assert factor[0].item() == pytest.approx(0, abs=1e-6) or factor[0].item() == pytest.approx(1 / 0.7, rel=1e-4)
    assert 0 < (embedded == 0).float().mean() < 0.8


@pytest.mark.parametrize("locked", [False, True])
def test_locked_dropout_keeps_its_mask_over_the_tokens_of_a_sequence(locked: bool) -> None:
    model = LSTMLanguageModel(with_(locked=locked))
    dropped = model._dropout(torch.ones(4, 30, 16), 0.4)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert bool((dropped == dropped[:, :1]).all()) == locked
    assert not (dropped == dropped[:1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.3)


def test_weights_dropped_are_the_recurrent_ones_with_one_mask_a_pass() -> None:
    """With the same draws, torch's module with a matrix that dropout has been through."""
    model = LSTMLanguageModel(with_(weight_dropout=0.5))
    tokens_BT = tokens_of(PLAIN)
    # A state of zeros meets no recurrent matrix: the first token has no dropout.
    first, again = model(tokens_BT), model(tokens_BT)
    torch.testing.assert_close(first[:, 0], again[:, 0], rtol=0, atol=0)
    assert not torch.allclose(first[:, 1], again[:, 1])
    peers = [torch.nn.LSTM(inputs, width, batch_first=True) for inputs, width in PLAIN.layer_shapes]
    torch.manual_seed(7)
    got = model(tokens_BT)
    torch.manual_seed(7)
    x = model.embedding(tokens_BT)
    for layer, peer in zip(model.layers, peers, strict=True):
        state = layer.state_dict()
        state["weight_hh_l0"] = torch.nn.functional.dropout(state["weight_hh_l0"], 0.5)
        peer.load_state_dict(state)
        x, _ = peer(x)
    torch.testing.assert_close(got, model.head(x), rtol=0, atol=1e-6 * got.std().item())
    # The gradient reaches the matrix through the mask.
    model(tokens_BT).sum().backward()
    grad = model.layers[0].weight_hh_l0.grad
    assert 0.3 < (grad == 0).float().mean() < 0.7


def test_penalties_are_means_times_the_number_of_targets() -> None:
    config = with_(output_dropout=0.5, activation_penalty=2.0, temporal_penalty=3.0)
    model = LSTMLanguageModel(config)
    plain = LSTMLanguageModel(with_(output_dropout=0.5))
    plain.load_state_dict(model.state_dict())
    tokens_BT = tokens_of(PLAIN)
    real_BT = torch.ones(3, 9, dtype=torch.bool)
    real_BT[1, 4:] = False
    losses = []
    for either in (model, plain):
        torch.manual_seed(3)
        losses.append(either.loss({"tokens": tokens_BT, "real": real_BT})[0].item())
    torch.manual_seed(3)
    raw, dropped = (tensor.detach().double().numpy() for tensor in plain._hidden(tokens_BT[:, :-1], None))
    squares, changes = [], []
    for batch, length in enumerate((8, 3, 8)):
        for position in range(length):
            squares.append(np.mean(dropped[batch, position] ** 2))
            if position:
                changes.append(np.mean((raw[batch, position] - raw[batch, position - 1]) ** 2))
    expected = 19 * (2 * np.mean(squares) + 3 * np.mean(changes))
    assert losses[0] - losses[1] == pytest.approx(expected, rel=1e-3)
    assert expected > 0.01 * losses[1]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_flops_are_those_of_the_products_that_run(name: str) -> None:
    """In double, where torch's own products run: the fused kernel is not counted."""
    config = CONFIGS[name]
    model = LSTMLanguageModel(config).double()
    with FlopCounterMode(display=False) as forward:
        model(tokens_of(config, batch=2, length=7))
    assert forward.get_total_flops() == 14 * lstm_forward_flops_per_token(config)


def test_tied_embeddings_need_the_same_width() -> None:
    with pytest.raises(ValueError, match=r"last layer \(16\) must be as wide as the embedding \(12\)"):
        with_(widths=(12, 16))


def test_it_can_be_built_without_memory_and_then_filled() -> None:
    model = LSTMLanguageModel(PLAIN).eval()
    with torch.device("meta"):
        empty = LSTMLanguageModel(PLAIN).eval()
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    tokens_BT = tokens_of(PLAIN)
    torch.testing.assert_close(filled(tokens_BT), model(tokens_BT), rtol=0, atol=0)
