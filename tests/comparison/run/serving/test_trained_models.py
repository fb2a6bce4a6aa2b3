"""Trained models as they are served: the same tokens as torch's, and what stands in for the native engine is named."""

from pathlib import Path

import pytest
import torch
from tests.conftest import MOE, SHARED, model_config
from tests.core.test_energy import spend, zone

from moekit.comparison.run.serving.decode_turns import FEWEST_ROUNDS, GreedyTurns, in_turns
from moekit.comparison.run.serving.trained_models import cache_bytes, measure_trained, save_served, served_model
from moekit.config import DenseConfig, ExpertChoiceConfig, LSTMConfig, ModelConfig, MoEConfig, SwitchConfig
from moekit.core.energy import EnergyMeter
from moekit.models import Decoder, LSTMLanguageModel, build

PROMPT = list(range(40, 52))


def greedy(model: Decoder, prompt: list[int], tokens: int) -> list[int]:
    """The most probable tokens, each from the whole text before it."""
    seen = list(prompt)
    with torch.inference_mode():
        for _ in range(tokens):
            seen.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
    return seen[len(prompt) :]


@pytest.mark.parametrize("plan", [(DenseConfig(width=48),) * 2, (MOE, MOE), (DenseConfig(width=48), SHARED)])
def test_every_turn_gives_the_tokens_that_torch_gives(plan: tuple[DenseConfig, ...], tmp_path: Path) -> None:
    model = Decoder(model_config(plan)).eval()
    expected = greedy(model, PROMPT, 10)
    model.save(tmp_path / "model")
    served = served_model(tmp_path / "model", PROMPT)
    assert isinstance(served.turn, GreedyTurns)
    assert (served.decode.engine, served.decode.weight_type) == ("native", "f32")
    for _ in range(2):
        assert len(served.turn(8)) == 8
        assert served.turn.tokens == expected


def test_what_is_served_is_in_bf16_and_counted(tmp_path: Path) -> None:
    config = model_config((MOE, DenseConfig(width=48)))
    save_served(build(config), tmp_path / "model")
    decode = served_model(tmp_path / "model", PROMPT).decode
    norms = 2 * 2 * 32 + 32
    parameters = sum(parameter.numel() for parameter in build(config).parameters())
    assert decode.weight_type == "bf16"
    assert decode.weight_bytes == 2 * (parameters - norms)
    assert decode.cache_bytes == 2 * 2 * (2 * 2 * 8) * len(PROMPT)
    assert decode.engine_reason is None


def test_a_window_bounds_the_cache() -> None:
    config = model_config()
    windowed = config.layers[0].model_copy(
        update={"attention": config.layers[0].attention.model_copy(update={"window": 5})}
    )
    values = config.layers[0].attention.cached_values_per_token
    assert cache_bytes(config.model_copy(update={"layers": (windowed, config.layers[1])}), 12, 2) == 2 * values * 17


def test_engines_and_reasons_are_told(tmp_path: Path) -> None:
    switch = MoEConfig(experts=4, expert_width=24, router=SwitchConfig())
    choice = MoEConfig(experts=4, expert_width=24, router=ExpertChoiceConfig(leaky=True))
    lstm = LSTMConfig(vocab_size=256, embedding_width=16, widths=(16,))
    configs: dict[str, ModelConfig | LSTMConfig] = {
        "dense": model_config((DenseConfig(width=48),) * 2),
        "switch": model_config((switch, switch)),
        "choice": model_config((choice, choice)),
        "lstm": lstm,
    }
    folders = {(name, 0): tmp_path / name for name in configs}
    for name, config in configs.items():
        save_served(build(config), tmp_path / name)
    found = measure_trained(folders, PROMPT, tokens=12, seconds=0.0)
    assert {name: decode.engine for (name, _), decode in found.items()} == {
        "dense": "native",
        "switch": "torch",
        "lstm": "torch",
    }
    assert "router.kind is switch" in (found["switch", 0].engine_reason or "")
    assert "causal decoders" in (found["lstm", 0].engine_reason or "")
    assert found["lstm", 0].cache_bytes == 2 * 2 * 16
    for decode in found.values():
        assert [len(turn) for turn in decode.round_ms] == [11] * FEWEST_ROUNDS
        assert min(min(turn) for turn in decode.round_ms) > 0


def test_an_lstm_continues_the_same_text_every_turn(tmp_path: Path) -> None:
    """What a turn leaves in the state is gone before the next."""
    save_served(LSTMLanguageModel(LSTMConfig(vocab_size=256, embedding_width=16, widths=(16,))), tmp_path / "lstm")
    turn = served_model(tmp_path / "lstm", PROMPT).turn
    before = [part.clone() for part in (*turn.state.hidden, *turn.state.cell)]  # type: ignore[attr-defined]
    turn(5)
    after = [*turn.state.hidden, *turn.state.cell]  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_models_take_turns_and_stop_in_time() -> None:
    asked: list[str] = []

    def turn(name: str, tokens: int) -> list[float]:
        asked.append(name)
        return [1.0] * tokens

    models = {name: (lambda tokens, name=name: turn(name, tokens)) for name in "abc"}
    found = in_turns(models, tokens=3, rounds=2, seconds=60.0)
    assert "".join(asked) == "abccba"
    assert {name: turns.round_ms for name, turns in found.items()} == {name: [[1.0] * 3] * 2 for name in "abc"}
    assert len(in_turns(models, tokens=1, rounds=100, seconds=0.0)["a"].round_ms) == FEWEST_ROUNDS


def test_a_turn_s_joules_are_its_own(tmp_path: Path) -> None:
    """Shared by its tokens and the one that is not timed; where one turn's are not told, none are."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    spent = 0

    def turn(microjoules: int, tokens: int) -> list[float]:
        nonlocal spent
        spent += microjoules
        spend(package, spent)
        return [1.0] * tokens

    models = {joules: (lambda tokens, joules=joules: turn(10**6 * joules, tokens)) for joules in (2, 6)}
    found = in_turns(models, tokens=3, rounds=4, seconds=60.0, energy=lambda: EnergyMeter(tmp_path))
    assert {name: turns.joules_per_token for name, turns in found.items()} == {2: 0.5, 6: 1.5}
    untold = in_turns(models, tokens=3, rounds=4, seconds=60.0, energy=lambda: EnergyMeter(tmp_path / "none"))
    assert [turns.joules_per_token for turns in untold.values()] == [None, None]
