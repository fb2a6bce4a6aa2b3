"""Sutskever's model against torch's module and against equations; what all models from source to target share."""

import itertools
import math

import numpy as np
import pytest
import torch

from moekit.config.seq2seq import GRUSeq2SeqConfig, LSTMSeq2SeqConfig, Seq2SeqConfig
from moekit.data.objectives.pairs import pair_batch
from moekit.models.attention_seq2seq import GRUSeq2Seq
from moekit.models.seq2seq import LSTMSeq2Seq, Seq2Seq, State

SHAPE = {"source_vocab_size": 11, "target_vocab_size": 13, "embedding_width": 6, "width": 8, "end_token": 2}
LSTM = LSTMSeq2SeqConfig(**SHAPE, layers=2, init_range=0.5)
SEARCH = GRUSeq2SeqConfig(**SHAPE, alignment_width=5, maxout_width=4)
PLAIN_GRU = SEARCH.model_copy(update={"attention": False})
CONFIGS = {"lstm": LSTM, "search": SEARCH, "encdec": PLAIN_GRU}


@pytest.fixture(params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> Seq2SeqConfig:
    return CONFIGS[request.param]


def build(config: Seq2SeqConfig, scale: float = 0.5) -> Seq2Seq:
    """Weights of unit scale: at the usual ones hardly anything depends on anything."""
    model = LSTMSeq2Seq(config) if isinstance(config, LSTMSeq2SeqConfig) else GRUSeq2Seq(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=scale)
    return model.eval()


def pair(batch: int = 3, source: int = 6, target: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 11, (batch, source)), torch.randint(0, 13, (batch, target))


@pytest.mark.parametrize("reverse", [False, True])
def test_sutskevers_values_and_gradients_are_those_of_torchs_modules(reverse: bool) -> None:
    model = build(LSTM.model_copy(update={"reverse_source": reverse}))
    source_BS, target_BT = pair()
    encoder, decoder = (torch.nn.LSTM(6, 8, 2) for _ in range(2))
    encoder.load_state_dict(model.encoder.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    read = source_BS.numpy()[:, ::-1].copy() if reverse else source_BS.numpy()
    embedded = model.source_embedding.weight.detach()[torch.as_tensor(read)]
    _, state = encoder(embedded.transpose(0, 1))
    x, _ = decoder(model.target_embedding.weight.detach()[target_BT].transpose(0, 1), state)
    expected = x.transpose(0, 1) @ model.head.weight.detach().T + model.head.bias.detach()
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    got = model(source_BS, target_BT)
    (got * direction).sum().backward()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * expected.std().item())
    for ours, theirs in ((model.encoder, encoder), (model.decoder, decoder)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert (a.grad - b.grad).norm() <= 1e-6 * b.grad.norm()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gated_step(weights: dict[str, np.ndarray], unit: str, inputs: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Appendix A.1.1: the reset gate acts on the state before U does. inputs: of z, r and the candidate."""
    n = len(state)
    u_z, u_r, u = (weights[f"{unit}.recurrent.weight"][part * n : (part + 1) * n] for part in range(3))
    update = sigmoid(inputs[:n] + u_z @ state)
    reset = sigmoid(inputs[n : 2 * n] + u_r @ state)
    proposed = np.tanh(inputs[2 * n :] + u @ (reset * state))
    return (1 - update) * state + update * proposed


def bahdanau(weights: dict[str, np.ndarray], source: list[int], target: list[int], attention: bool) -> np.ndarray:
    """The logits for one pair, a step and a unit at a time, from appendix A of the paper."""
    w = weights
    n = w["start.weight"].shape[0]
    states: list[list[np.ndarray]] = []
    for direction in range(2 if attention else 1):
        state, path = np.zeros(n), {}
        positions = range(len(source)) if direction == 0 else range(len(source) - 1, -1, -1)
        for position in positions:
            embedded = w["source_embedding.weight"][source[position]]
            inputs = w[f"encoder_inputs.{direction}.weight"] @ embedded + w[f"encoder_inputs.{direction}.bias"]
            state = gated_step(w, f"encoder_units.{direction}", inputs, state)
            path[position] = state
        states.append([path[position] for position in range(len(source))])
    first = states[1][0] if attention else states[0][-1]
    s = np.tanh(w["start.weight"] @ first + w["start.bias"])
    rows = []
    for token in target:
        if attention:
            annotations = [np.concatenate([forward, back]) for forward, back in zip(*states, strict=True)]
            energies = [
                (w["align_score.weight"][0] * np.tanh(w["align_state.weight"] @ s + w["align_source.weight"] @ h)).sum()
                for h in annotations
            ]
            total = sum(math.exp(energy) for energy in energies)
            context = sum(math.exp(e) / total * h for e, h in zip(energies, annotations, strict=True))
        else:
            context = states[0][-1]
        y = w["target_embedding.weight"][token]
        deep = w["maxout_state.weight"] @ s + w["maxout_state.bias"]
        deep = deep + w["maxout_token.weight"] @ y + w["maxout_context.weight"] @ context
        maxed = np.array([max(deep[2 * j], deep[2 * j + 1]) for j in range(len(deep) // 2)])
        rows.append(w["head.weight"] @ maxed + w["head.bias"])
        inputs = w["decoder_input.weight"] @ y + w["decoder_input.bias"] + w["decoder_context.weight"] @ context
        s = gated_step(w, "decoder_unit", inputs, s)
    return np.stack(rows)


@pytest.mark.parametrize("attention", [False, True])
def test_bahdanaus_logits_are_those_of_the_papers_equations(attention: bool) -> None:
    model = build(SEARCH if attention else PLAIN_GRU).double()
    source_BS, target_BT = pair()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        got = model(source_BS, target_BT).numpy()
    for batch in range(3):
        expected = bahdanau(weights, source_BS[batch].tolist(), target_BT[batch].tolist(), attention)
        np.testing.assert_allclose(got[batch], expected, rtol=1e-10, atol=1e-12)


def test_the_gated_unit_is_not_torchs() -> None:
    """With the reset gate open both agree (1 - z is z); half closed, they differ."""
    unit = build(SEARCH).decoder_unit
    theirs = torch.nn.GRUCell(8, 8)
    x, s = torch.randn(4, 24), torch.randn(4, 8)
    with torch.no_grad():
        u_z, u_r, u = unit.recurrent.weight.chunk(3)
        theirs.weight_ih.copy_(torch.zeros(24, 8))
        theirs.bias_hh.zero_()
        # torch's rows are r, z, n, and its z keeps the state.
        theirs.weight_hh.copy_(torch.cat((u_r, -u_z, u)))
        for opened, same in ((1e4, True), (0.0, False)):
            outputs = []
            for row in range(4):
                x_z, x_r, x_n = x[row].chunk(3)
                x_r = x_r + opened
                theirs.bias_ih.copy_(torch.cat((x_r, -x_z, x_n)))
                outputs.append((unit(torch.cat((x_z, x_r, x_n)), s[row]), theirs(torch.zeros(8), s[row])))
            ours, others = (torch.stack(side) for side in zip(*outputs, strict=True))
            assert torch.allclose(ours, others, atol=1e-5) == same


def test_padding_of_the_source_changes_nothing(config: Seq2SeqConfig) -> None:
    """Padded at the end, at the start and in the middle, with any token."""
    model = build(config)
    source_BS, target_BT = pair()
    lengths = (6, 3, 1)
    padded = torch.randint(0, 11, (3, 9))
    real_BS = torch.zeros(3, 9, dtype=torch.bool)
    places = ([0, 1, 2, 5, 7, 8], [6, 7, 8], [4])
    with torch.no_grad():
        for row, (length, place) in enumerate(zip(lengths, places, strict=True)):
            padded[row, place] = source_BS[row, :length]
            real_BS[row, place] = True
        together = model(padded, target_BT, real_BS)
        for row, length in enumerate(lengths):
            alone = model(source_BS[row : row + 1, :length], target_BT[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5 * alone.std().item())
        # Control: as a real token it does change something.
        assert (model(padded, target_BT) - together).abs().max() > 1e-3


def test_a_source_of_padding_alone_is_refused(config: Seq2SeqConfig) -> None:
    source_BS, target_BT = pair()
    real_BS = torch.tensor([[True] * 6, [False] * 6, [True] * 6])
    with pytest.raises(ValueError, match="no real token"):
        build(config)(source_BS, target_BT, real_BS)


def test_step_by_step_equals_the_whole_sequence(config: Seq2SeqConfig) -> None:
    model = build(config)
    source_BS, target_BT = pair()
    with torch.no_grad():
        whole = model(source_BS, target_BT)
        state, parts = model.encode(source_BS), []
        for begin, end in ((0, 2), (2, 3), (3, 5)):
            logits, state = model.decode(target_BT[:, begin:end], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6 * whole.std().item())


def test_log_prob_and_loss(config: Seq2SeqConfig) -> None:
    model = build(config)
    source_BS, target_BT = pair()
    with torch.no_grad():
        log_prob = model.target_log_prob(source_BS, target_BT)
        logits = model(source_BS, torch.cat((torch.full((3, 1), config.end_token), target_BT[:, :-1]), 1))
        for batch, position in itertools.product(range(3), range(5)):
            row = logits[batch, position].double()
            expected = row[target_BT[batch, position]] - row.exp().sum().log()
            assert log_prob[batch, position].item() == pytest.approx(expected.item(), abs=1e-5)
        torch.testing.assert_close(model.log_prob(target_BT, source_BS=source_BS), log_prob[:, 1:])
        # Without a source: one end token.
        empty = model.target_log_prob(torch.full((3, 1), 2), target_BT)
        torch.testing.assert_close(model.log_prob(target_BT), empty[:, 1:])


def test_loss_is_that_of_each_pair_alone(config: Seq2SeqConfig) -> None:
    """Pairs of several lengths, as the objective makes a batch of them."""
    model = build(config)
    sources, targets = [[3, 4, 5, 6], [7], [8, 9]], [[3], [4, 5, 6], []]
    loss, count = model.loss(pair_batch(sources, targets, pad=0, end=2))
    expected = 0.0
    for source, target in zip(sources, targets, strict=True):
        logits = model(torch.tensor([[*source, 2]]), torch.tensor([[2, *target]]))[0].double().log_softmax(-1)
        expected -= sum(logits[place, token].item() for place, token in enumerate([*target, 2]))
    assert count == 2 + 4 + 1
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_end_that_is_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"end_token \(11\) must be a token of both"):
        LSTMSeq2SeqConfig.model_validate(LSTM.model_dump() | {"end_token": 11})


TINY = {"source_vocab_size": 5, "target_vocab_size": 3, "embedding_width": 4, "width": 4, "end_token": 0}
TINY_CONFIGS = (
    LSTMSeq2SeqConfig(**TINY, layers=1),
    GRUSeq2SeqConfig(**TINY, alignment_width=3, maxout_width=3),
)


def greedy(model: Seq2Seq, source_BS: torch.Tensor, real_BS: torch.Tensor, max_tokens: int) -> tuple[list[int], float]:
    tokens, total = [model.config.end_token], 0.0
    for _ in range(max_tokens):
        row = model(source_BS, torch.tensor([tokens]), real_BS)[0, -1].double().log_softmax(-1)
        tokens.append(int(row.argmax()))
        total += row.max().item()
        if tokens[-1] == model.config.end_token:
            return tokens[1:-1], total
    return tokens[1:], total


@pytest.mark.parametrize("config", TINY_CONFIGS)
def test_translation_is_greedy_with_one_hypothesis_and_exact_with_enough(config: Seq2SeqConfig) -> None:
    """Against a search through all targets of up to 4 tokens."""
    max_tokens, differs, unfinished, lengths = 5, 0, 0, set()
    for seed in range(6):
        torch.manual_seed(seed)
        model = build(config, scale=1.5)
        with torch.no_grad():
            # Ends are rare, so that the best is often long and hypotheses change places on the way.
            model.head.bias[0] -= 1.5
        source_BS = torch.randint(0, 5, (2, 4))
        real_BS = torch.tensor([[True] * 4, [True, True, True, False]])
        with torch.no_grad():
            single = model.translate(source_BS, real_BS, beam=1, max_tokens=max_tokens)
            exact = model.translate(source_BS, real_BS, beam=3**max_tokens, max_tokens=max_tokens)
            for row in range(2):
                given = (source_BS[row : row + 1], real_BS[row : row + 1])
                tokens, total = greedy(model, *given, max_tokens)
                assert list(single[row].tokens) == tokens
                assert single[row].log_prob == pytest.approx(total, abs=1e-4)
                assert single[row].finished == (len(tokens) < max_tokens)
                unfinished += not single[row].finished
                scores: dict[tuple[int, ...], float] = {}
                for length in range(max_tokens):
                    targets = list(itertools.product((1, 2), repeat=length))
                    whole = torch.tensor([[*words, 0] for words in targets])
                    sources, reals = (part.expand(len(whole), -1) for part in given)
                    found = model.target_log_prob(sources, whole, reals).double().sum(1).tolist()
                    scores |= dict(zip(targets, found, strict=True))
                best = max(scores, key=scores.__getitem__)
                assert exact[row].tokens == best
                assert exact[row].finished
                assert exact[row].log_prob == pytest.approx(scores[best], abs=1e-4)
                differs += list(best) != tokens
                lengths.add(len(best))
    # The search has something to find, and some greedy ones don't come to an end.
    assert differs >= 3
    assert unfinished >= 1
    assert len(lengths) >= 3


class RandomTree(Seq2Seq):
    """Each prefix has its own random distribution: the state is the prefix, as a number."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__(LSTMSeq2SeqConfig(**TINY))
        self.logits_PV = torch.randn(4 ** (max_tokens + 1), 3, dtype=torch.float64) * 1.5
        self.logits_PV[:, 0] -= 1

    def encode(self, source_BS: torch.Tensor, source_real_BS: torch.Tensor | None = None) -> State:
        return (source_BS.new_zeros(source_BS.shape[0]),)

    def decode(self, target_BT: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        prefix_B = state[0] * 4 + target_BT[:, 0] + 1
        return self.logits_PV[prefix_B][:, None], (prefix_B,)


def plain_beam_search(tree: RandomTree, beam: int, max_tokens: int) -> tuple[tuple[int, ...], float]:
    """With lists, and to the end."""
    going, ended = [((), 0.0)], []
    for _ in range(max_tokens):
        longer = []
        for words, score in going:
            prefix = 0
            for token in (0, *words):
                prefix = prefix * 4 + token + 1
            log_probs = tree.logits_PV[prefix].log_softmax(-1).tolist()
            longer += [((*words, token), score + log_probs[token]) for token in range(3)]
        longer = sorted(longer, key=lambda entry: -entry[1])[:beam]
        ended += [(words[:-1], score) for words, score in longer if words[-1] == 0]
        going = [entry for entry in longer if entry[0][-1] != 0]
    return max(ended or going, key=lambda entry: entry[1])


@pytest.mark.parametrize("beam", [1, 2, 3, 243])
def test_a_beam_search_keeps_the_best_of_all_continuations(beam: int) -> None:
    better = 0
    for seed in range(20):
        torch.manual_seed(seed)
        tree = RandomTree(max_tokens=5)
        (found,) = tree.translate(torch.zeros(1, 1, dtype=torch.int64), beam=beam, max_tokens=5)
        words, score = plain_beam_search(tree, beam, 5)
        assert found.tokens == words
        assert found.log_prob == pytest.approx(score, rel=1e-9)
        better += plain_beam_search(tree, 1, 5)[0] != words
    assert (better > 5) == (beam > 1)


def test_a_search_needs_positive_numbers() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        build(LSTM).translate(torch.zeros(1, 1, dtype=torch.int64), beam=0, max_tokens=3)


def test_initialisation_is_the_papers() -> None:
    """Bahdanau's appendix B.1, and U(-0.08, 0.08) for Sutskever's."""
    model = GRUSeq2Seq(SEARCH.model_copy(update={"width": 40, "alignment_width": 60}))
    for matrix in model.decoder_unit.recurrent.weight.chunk(3):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(40), rtol=0, atol=1e-5)
    assert not model.align_score.weight.any()
    assert not model.head.bias.any()
    assert model.align_source.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model.maxout_context.weight.std().item() == pytest.approx(0.01, rel=0.2)
    model = LSTMSeq2Seq(LSTM.model_copy(update={"init_range": 0.08}))
    flat = torch.cat([parameter.flatten() for parameter in model.parameters()])
    assert 0.07 < flat.abs().max() <= 0.08
    assert flat.std().item() == pytest.approx(0.16 / math.sqrt(12), rel=0.1)


def test_it_can_be_built_without_memory_and_then_filled(config: Seq2SeqConfig) -> None:
    model = build(config)
    with torch.device("meta"):
        empty = type(model)(config)
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(model.state_dict())
    source_BS, target_BT = pair()
    torch.testing.assert_close(filled(source_BS, target_BT), model(source_BS, target_BT), rtol=0, atol=0)


def test_in_bf16_log_prob_is_fp32_and_near(config: Seq2SeqConfig) -> None:
    model = build(config)
    source_BS, target_BT = pair()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model.log_prob(target_BT, source_BS=source_BS)
        high = model.log_prob(target_BT, source_BS=source_BS)
    assert low.dtype == torch.float32
    assert (low - high).abs().max() < 0.2
