"""Grown contestants of random weights: their routers choose as asked, and their memory is what was said."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import DENSE, MOE, RESIDUAL, SHARED, model_config

from moekit.comparison.results_schema import ExpertsByDomain, Run
from moekit.comparison.run.serving import served_sizes
from moekit.comparison.run.serving.drawn_routing import Choices, draw_choices, shares_of, solve_router
from moekit.comparison.run.serving.random_weights import Arena, arena_bytes, random_embedding, random_weights
from moekit.comparison.run.serving.scaled_config import growth_to, scaled
from moekit.comparison.run.serving.served_sizes import Aim, even_loads, measure_sizes, trained_loads
from moekit.config import ModelConfig
from moekit.counting import count_parameters
from moekit.kernels.native.products import dequantize
from moekit.kernels.native.weights import MoEWeights, NetworkWeights, matrices
from moekit.kernels.packed import BF16, F32, Q8_0, PackedMatrix
from moekit.models import Decoder
from moekit.moe import Routing

TINY = Aim(dense_bytes=1e6, least_bytes=1e5, memory=1e8, context=20)


@pytest.fixture(autouse=True)
def usual_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read in a test says nothing of memory, and measuring it takes half a second."""
    monkeypatch.setattr(served_sizes, "read_bandwidth", lambda: 1e10)


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[float], int, int]:
    """Shares of experts, experts a token, tokens: no share is more than one token in each of its choices."""
    experts = draw(st.integers(2, 24))
    top_k = draw(st.integers(1, experts))
    share_E = np.array(draw(st.lists(st.floats(0.0, 1.0), min_size=experts, max_size=experts))) + 1e-3
    for _ in range(60):  # what is above the most that there can be goes to the others
        share_E = np.minimum(share_E / share_E.sum(), 1 / top_k)
    if abs(share_E.sum() - 1) > 1e-9:
        share_E = np.full(experts, 1 / experts)
    return share_E.tolist(), top_k, draw(st.integers(1, 200))


@given(case=loads(), seed=st.integers(0, 9))
def test_drawn_choices_have_the_loads_that_were_asked_for(case: tuple[list[float], int, int], seed: int) -> None:
    share_E, top_k, tokens = case
    choice_VK = draw_choices(share_E, top_k, tokens, np.random.default_rng(seed))
    assert choice_VK.shape == (tokens, top_k)
    assert all(len(set(row)) == top_k for row in choice_VK.tolist())
    got_E = shares_of(choice_VK, len(share_E))
    assert np.abs(got_E - np.array(share_E)).max() <= (1 + 1e-6) / (tokens * top_k)


def test_no_expert_is_chosen_twice_by_one_token() -> None:
    with pytest.raises(ValueError, match="more than 1 / 2"):
        draw_choices([0.6, 0.2, 0.2], 2, 50, np.random.default_rng(0))


def test_a_router_is_solved_for() -> None:
    random = np.random.default_rng(1)
    input_VD = random.standard_normal((40, 80), np.float32)
    choice_VK = draw_choices([0.1, 0.2, 0.3, 0.15, 0.25], 3, 40, random)
    logits_VE = input_VD @ solve_router(input_VD, choice_VK, 5).T
    assert np.array_equal(np.sort(np.argsort(-logits_VE, 1)[:, :3]), np.sort(choice_VK))


def unpacked(matrix: PackedMatrix) -> torch.Tensor:
    """The numbers of a matrix in bf16 or fp32."""
    dtype = {BF16: torch.bfloat16, F32: torch.float32}[matrix.type]
    return torch.from_numpy(np.ascontiguousarray(matrix.data_RB)).view(dtype).view(matrix.rows, -1).float()


def by_torch(config: ModelConfig, arena: Arena, choices: Mapping[int, Choices]) -> Decoder:
    """The torch module of those weights: what the routers choose is told there."""
    weights = random_weights(config, arena, random_embedding(config, np.random.default_rng(0)), choices)
    model = Decoder(config).eval()
    state = {"embedding.weight": unpacked(weights.embedding), "head.weight": unpacked(weights.head)}
    state["norm.weight"] = torch.from_numpy(weights.norm_D)
    for index, layer in enumerate(weights.layers):
        name, part = f"layers.{index}", layer.attention
        state[f"{name}.attention_norm.weight"] = torch.from_numpy(layer.attention_norm_D)
        state[f"{name}.feed_forward_norm.weight"] = torch.from_numpy(layer.feed_forward_norm_D)
        state[f"{name}.attention.query_key_value.weight"] = torch.cat(
            [unpacked(part.query), unpacked(part.key), unpacked(part.value)]
        )
        state[f"{name}.attention.output.weight"] = unpacked(part.output)
        _fill_feed_forward(state, f"{name}.feed_forward", layer.feed_forward, config.width)
    model.load_state_dict(state)
    return model


def _fill_feed_forward(
    state: dict[str, torch.Tensor], name: str, part: NetworkWeights | MoEWeights, width: int
) -> None:
    if isinstance(part, NetworkWeights):
        assert part.gate is not None
        state[f"{name}.gate_up.weight"] = torch.cat([unpacked(part.gate), unpacked(part.up)])
        state[f"{name}.down.weight"] = unpacked(part.down)
        return
    state[f"{name}.router.weight"] = unpacked(part.router)
    experts = part.router.rows
    assert part.experts.gate is not None
    halves = [unpacked(half).view(experts, -1, width) for half in (part.experts.gate, part.experts.up)]
    state[f"{name}.experts.gate_up_EGD"] = torch.cat(halves, 1)
    state[f"{name}.experts.down_EDF"] = unpacked(part.experts.down).view(experts, width, -1)
    if part.shared_expert is not None:
        _fill_feed_forward(state, f"{name}.branch", part.shared_expert, width)


@pytest.mark.parametrize("plan", [(MOE, MOE), (DENSE, SHARED)])
def test_loads_are_those_of_the_trained_routers(plan: tuple[object, ...]) -> None:
    """In the model, in all its layers and behind a context: every token has the experts that were drawn for it."""
    config = scaled(model_config(plan), growth_to(model_config(plan), 2e5), 80)  # type: ignore[arg-type]
    random = np.random.default_rng(3)
    tokens = config.width // 2
    wanted = {index: random.dirichlet([8.0] * len(share)) for index, share in even_loads(config).items()}
    choices = {index: draw_choices(share, 2, tokens, random) for index, share in wanted.items()}
    model = by_torch(config, Arena(BF16, arena_bytes(config, BF16)), choices)
    given_T = torch.from_numpy(random.permutation(tokens))
    routings: list[Routing] = []
    with torch.inference_mode():
        model(given_T[None], routings=routings)
    for index, routing in zip(choices, routings, strict=True):
        counted_E = routing.counts_E.numpy()
        assert np.array_equal(counted_E, np.bincount(choices[index].ravel(), minlength=len(counted_E)))
        share_E = wanted[index] / wanted[index].sum()
        assert np.abs(counted_E / counted_E.sum() - share_E).max() <= 1 / (2 * tokens)


def test_all_models_share_one_memory() -> None:
    large, small = (
        scaled(model_config(plan), growth_to(model_config(), 4e5), 32) for plan in ((MOE,) * 2, (DENSE,) * 2)
    )
    size = max(arena_bytes(config, BF16) for config in (large, small))
    arena = Arena(BF16, size)
    assert arena.data_B is not None
    cut = []
    for config in (large, small):
        arena.restart()
        cut.append(random_weights(config, arena, random_embedding(config, np.random.default_rng(0)), {}))
        assert arena.used <= size
        # Beside the memory are embeddings and routers alone.
        own = [one for one in matrices(cut[-1]) if not np.shares_memory(one.data_RB, arena.data_B)]
        assert sum(one.data_RB.nbytes for one in own) < 0.1 * size
    assert np.shares_memory(cut[0].head.data_RB, arena.data_B)
    with pytest.raises(ValueError, match="too small"):
        random_weights(large, arena, random_embedding(large, np.random.default_rng(0)), {})


@pytest.mark.parametrize("kind", [BF16, Q8_0])
def test_random_blocks_are_those_of_normal_numbers(kind: object) -> None:
    arena = Arena(kind, 3 << 20)  # type: ignore[arg-type]
    arena.cut(3, 64)
    matrix = arena.cut(128, 256)
    assert float(dequantize(matrix).std()) == pytest.approx(0.02, rel=0.05)


def measured(
    names: Sequence[str], aim: Aim = TINY, seconds: float = 30.0, **configs: ModelConfig
) -> served_sizes.MeasuredSizes:
    found = {name: even_loads(config) for name, config in configs.items() if name in names}
    return measure_sizes(configs, "dense", found, aim, seconds)


def test_contestants_are_measured_or_it_is_said_why_not() -> None:
    dense, moe, residual = (model_config((part,) * 2) for part in (DENSE, MOE, RESIDUAL))
    found = measured(("dense", "moe", "residual"), dense=dense, moe=moe, residual=residual, untold=moe)
    assert found.sizes.keys() == {"dense", "moe"}
    assert "native engine does not compute it" in found.left_out["residual"]
    assert "no run tells" in found.left_out["untold"]
    moe_size, dense_size = found.sizes["moe"], found.sizes["dense"]
    assert moe_size.load_error is not None
    assert moe_size.load_error < 0.01
    assert dense_size.load_error is None
    assert dense_size.decode.weight_bytes == pytest.approx(1e6, rel=0.4)
    assert moe_size.params_total > 1.3 * dense_size.params_total
    assert (moe_size.decode.engine, moe_size.decode.weight_type, moe_size.decode.context) == ("native", "bf16", 20)
    assert [len(turn) for turn in moe_size.decode.round_ms] == [8] * 10


def test_the_memory_there_is_bounds_the_size() -> None:
    configs = {"dense": model_config((DENSE,) * 2), "moe": model_config((MOE,) * 2)}
    tight = measured(("dense", "moe"), Aim(dense_bytes=1e6, least_bytes=1e5, memory=8e5, context=20), **configs)
    assert max(one.decode.weight_bytes for one in tight.sizes.values()) < 8e5
    none = measured(("dense", "moe"), Aim(dense_bytes=1e6, least_bytes=9e5, memory=1e5, context=20), **configs)
    assert not none.sizes
    assert "no room" in none.left_out["dense"]


def test_the_time_there_is_bounds_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest rounds of all contestants read no more than half of the time allows."""
    monkeypatch.setattr(served_sizes, "read_bandwidth", lambda: 1e6)
    configs = {"dense": model_config((DENSE,) * 2)}
    found = measured(("dense",), seconds=40.0, **configs)
    counted = count_parameters(found.sizes["dense"].config)
    read = 2 * (counted.active - counted.by_part["embedding"])
    assert 0.3 * 20e6 < 45 * read <= 20e6
    assert not measured(("dense",), seconds=5.0, **configs).sizes


def test_routing_that_strays_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where layers add as much as in any model, their routers see something else than they were solved for."""
    monkeypatch.setattr("moekit.comparison.run.serving.random_weights._SMALL", 4.0)
    found = measured(("dense", "moe"), dense=model_config((DENSE,) * 2), moe=model_config((MOE,) * 2))
    assert "which experts are chosen" in found.left_out["moe"]


def test_loads_are_means_over_domains_and_runs() -> None:
    def run(seed: int, *rows: list[float]) -> Run:
        table = ExpertsByDomain(
            layer=1, domains=["a", "b"], share=list(rows), mutual_information_bits=0, shuffled_mean_bits=0,
            shuffled_p95_bits=0,
        )  # fmt: skip
        return Run(seed=seed, status="done", experts_by_domain=[table])

    assert trained_loads([run(0, [1.0, 0.0], [0.5, 0.5]), run(1, [0.5, 0.5], [0.6, 0.4])]) == {
        1: pytest.approx([0.65, 0.35])
    }
    assert trained_loads([]) == {}


def test_a_quantised_type_is_measured_as_well() -> None:
    found = measured(("dense",), Aim(kind=Q8_0, dense_bytes=1e6, least_bytes=1e5, memory=1e8, context=20),
                     dense=model_config((DENSE,) * 2))  # fmt: skip
    assert found.sizes["dense"].decode.weight_type == "q8_0"
