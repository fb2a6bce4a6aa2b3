"""Gates: mergekit's to the bit, ours against what a router really reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.addresses import OFFSETS, shift_parameters, shifted
from tests.convert.merging.merge_recipes import PROMPTS, make_models, planned, recipe
from torch import Tensor

from moekit.convert.merging.merge_config import ExpertConfig, Reference
from moekit.convert.merging.mergekit_arithmetic import block_inputs, drawn_gates
from moekit.convert.merging.prompts import prompt_encoder
from moekit.convert.merging.router_input_gates import (
    Labelled,
    centroid_gate,
    fitted_gate,
    labelled_layers,
    router_gates,
)
from moekit.models import load
from moekit.models.stored_model import StoredModel
from moekit.models.streamed_decoder import ReadableModel, TokenBatch

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.processor

KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True},
    "Mistral": {"sliding_window": 5},
    "Qwen2": {},
    "Qwen3": {"head_dim": 12, "num_key_value_heads": 4},
}


def experts_of(*prompts: list[str]) -> list[ExpertConfig]:
    return [ExpertConfig(source_model=Reference(model="x"), positive_prompts=tuple(texts)) for texts in prompts]


ROWS = [[[1, 5, 9, 30, 7, 8], [1, 4], [1, 60, 2]], [[1, 5, 9, 30], [3, 2, 1, 9]], [[1]]]
"""Batches of prompts: with padding, without, and of one token. Each takes another way through the attention kernel."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_block_inputs_have_the_bits_of_transformers(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of transformers with its weights in aligned memory: it computes from wherever they lie in the file."""
    folder = make_models(tmp_path, kind, 0, num_hidden_layers=3, **KINDS[kind]) / "base"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    shift_parameters(theirs, 0)
    base = StoredModel(folder)
    batches = [TokenBatch.of(group, left=True) for group in ROWS]
    found = list(block_inputs(base, batches, dtype))
    for place, batch in enumerate(batches):
        with torch.no_grad():
            expected = theirs(
                batch.tokens_BT, attention_mask=batch.real_BT.long(), output_hidden_states=True
            ).hidden_states
        for index, inputs in enumerate(found):
            assert torch.equal(inputs[place], expected[index]), (place, index)


class Elsewhere:
    """The weights of a source at addresses that are no multiples of 16."""

    def __init__(self, source: ReadableModel, offset: int) -> None:
        self._source, self._offset = source, offset
        self.config, self.shapes = source.config, source.shapes

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        return shifted(self._source.rows(name, begin, end), self._offset)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_block_inputs_have_the_same_bits_wherever_weights_lie(
    dtype: torch.dtype, kind: str, offset: int, tmp_path: Path
) -> None:
    base = StoredModel(make_models(tmp_path, kind, 0, num_hidden_layers=3, **KINDS[kind]) / "base")
    batches = [TokenBatch.of(group, left=True) for group in ROWS]
    expected = list(block_inputs(base, batches, dtype))
    found = list(block_inputs(Elsewhere(base, offset), batches, dtype))
    assert all(
        torch.equal(a, b) for of_a, of_b in zip(expected, found, strict=True) for a, b in zip(of_a, of_b, strict=True)
    )


# The first three columns of the gates of two experts of `make_models(folder)`, layer by layer, as mergekit 0.1.5 (with
# torch 2.13 and transformers 5.23) wrote them for seed 7.
MERGEKIT = {
    "hidden": [
        [[-0.03979492, 0.08154297, 0.07421875], [-0.14941406, -0.14257812, 0.21875]],
        [[-0.26367188, 0.09619141, 0.09765625], [0.2421875, -0.06396484, 0.00460815]],
    ],
    "hidden_avg": [
        [[0.08251953, -0.01159668, 0.13867188], [0.11181641, -0.1015625, 0.26953125]],
        [[0.15820312, 0.06103516, 0.05639648], [0.10888672, -0.13769531, 0.15527344]],
    ],
    "cheap_embed": [
        [[0.10126682, -0.1911924, 0.23721145], [0.1256391, -0.24865402, 0.35826272]],
        [[0.10126682, -0.1911924, 0.23721145], [0.1256391, -0.24865402, 0.35826272]],
    ],
    "random": [
        [[-0.82013452, 0.39563116, 0.8989085], [-0.08352823, -0.02347793, 0.17437536]],
        [[0.13323981, 0.18254541, -0.51463234], [-0.53682244, 0.82888263, 1.05706978]],
    ],
    "uniform_random": [
        [[0.01234698, -0.10648915, 0.05628984], [0.04477774, 0.02442087, 0.08617254]],
        [[-0.05993425, 0.00692144, -0.10087041], [-0.10761614, 0.13650893, 0.08005606]],
    ],
}


@pytest.mark.parametrize("mode", MERGEKIT)
def test_gates_are_those_that_mergekit_wrote(mode: str, tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    routers = planned(folder, recipe(folder, gate_mode=mode), seed=7).routers
    assert routers is not None
    gate_LED = torch.stack([routers[f"layers.{layer}.feed_forward.router.weight"] for layer in (0, 1)])
    expected = torch.tensor(MERGEKIT[mode])
    # Another processor may round a product of the first layer the other way, and the logarithms of normal numbers.
    tolerance = {"hidden": 0.02, "hidden_avg": 0.02, "random": 1e-5}.get(mode, 1e-7)
    torch.testing.assert_close(gate_LED[:, :, :3].float(), expected, rtol=tolerance, atol=tolerance)
    assert gate_LED.shape == (2, 2, 32)


@pytest.mark.parametrize("mode", ["random", "uniform_random"])
def test_drawn_gates_are_torch_s_own_numbers(mode: str) -> None:
    torch.manual_seed(11)
    expected = torch.randn(2, 3, 16) if mode == "random" else (torch.rand(2, 3, 16) * 2 - 1) / 4
    found = drawn_gates(mode, 2, 3, 16, torch.Generator().manual_seed(11))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert mode == "random" or found.abs().max() <= 0.25


def test_the_encoder_puts_the_start_token_before_every_prompt_and_pads_on_the_left(tmp_path: Path) -> None:
    base = StoredModel(make_models(tmp_path, count=0) / "base")
    encoder = prompt_encoder(base)
    assert encoder.start_text == "<s>"
    batch = TokenBatch.of([encoder.ids(text) for text in ("abcd", "a")], padding=encoder.padding, left=True)
    assert batch.tokens_BT[:, 0].tolist() == [1, 1]
    assert batch.real_BT.tolist() == [[True] * 5, [False] * 3 + [True] * 2]
    assert encoder.ids("abcd")[0] == 1


def test_router_inputs_are_what_the_feed_forward_norm_gives(tmp_path: Path) -> None:
    """Against our decoder with a hook, each prompt alone: neither padding nor the other prompts may show."""
    base = StoredModel(make_models(tmp_path, count=0) / "base")
    encoder = prompt_encoder(base)
    experts = experts_of(PROMPTS[0], PROMPTS[1])
    layers = list(labelled_layers(base, encoder, experts))
    model = load(base.folder)
    seen: list[Tensor] = []
    for layer in model.layers:  # type: ignore[union-attr]
        layer.feed_forward_norm.register_forward_hook(
            lambda module, given, sum_and_normed: seen.append(sum_and_normed[1][0])
        )
    for number, prompt in enumerate([*PROMPTS[0], *PROMPTS[1]]):
        seen.clear()
        with torch.no_grad():
            model(torch.tensor([encoder.ids(prompt)]))
        for layer, expected in zip(layers, seen, strict=True):
            chosen = layer.prompt_N == number
            assert (layer.label_N[chosen] == number // 2).all()
            torch.testing.assert_close(layer.x_ND[chosen], expected, rtol=1e-4, atol=1e-5)


def clusters(experts: int, tokens: int, width: int = 24, common: float = 4.0) -> Labelled:
    """Tokens around a centre for each expert, all far from zero in one direction, two prompts an expert."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(experts, width, generator=generator)
    label_N = torch.arange(experts).repeat_interleave(tokens)
    x_ND = centres[label_N] + 0.7 * torch.randn(len(label_N), width, generator=generator)
    x_ND += common * torch.ones(width)
    prompt_N = torch.arange(2 * experts).repeat_interleave(tokens // 2)
    return Labelled(x_ND, label_N, torch.zeros_like(label_N, dtype=torch.bool), prompt_N)


@pytest.mark.parametrize("make", [centroid_gate, fitted_gate])
@pytest.mark.parametrize(("experts", "tokens"), [(2, 6), (4, 40)])
def test_gates_send_tokens_home_although_all_have_a_large_part_in_common(make: Any, experts: int, tokens: int) -> None:
    data = clusters(experts, tokens)
    gate_ED = make(data, experts).float()
    logits_NE = data.x_ND @ gate_ED.t()
    assert (logits_NE.argmax(-1) == data.label_N).float().mean() >= 0.95
    # The temperature fits: the logits are neither flat nor as large as the common part would make them.
    nats = torch.nn.functional.cross_entropy(logits_NE, data.label_N)
    assert nats < 0.5
    assert torch.equal(gate_ED, make(data, experts).float())


def test_a_long_or_loud_prompt_counts_no_more_than_another() -> None:
    data = clusters(3, 8)
    loud = Labelled(data.x_ND.clone(), data.label_N, data.against_N, data.prompt_N)
    loud.x_ND[data.prompt_N == 0] *= 50.0
    a, b = (torch.nn.functional.normalize(centroid_gate(one, 3), dim=-1) for one in (data, loud))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    shares = data.share_N
    assert shares.sum() == pytest.approx(1.0, rel=1e-5)
    longer = Labelled(
        torch.cat([data.x_ND, data.x_ND[:4]]),
        torch.cat([data.label_N, data.label_N[:4]]),
        torch.cat([data.against_N, data.against_N[:4]]),
        torch.cat([data.prompt_N, data.prompt_N[:4]]),
    )
    of_prompts = torch.zeros(6).index_add_(0, longer.prompt_N, longer.share_N)
    torch.testing.assert_close(of_prompts, torch.full((6,), 1 / 6))


@pytest.mark.parametrize("make", [centroid_gate, fitted_gate])
def test_negative_prompts_push_away(make: Any) -> None:
    data = clusters(3, 8)
    # The tokens of the third cluster come as prompts against expert 0, and expert 2 has other ones.
    against_N = data.label_N == 2
    moved = Labelled(
        torch.cat([data.x_ND, -data.x_ND[:8]]),
        torch.cat([torch.where(against_N, 0, data.label_N), torch.full((8,), 2)]),
        torch.cat([against_N, torch.zeros(8, dtype=torch.bool)]),
        torch.cat([data.prompt_N, torch.full((8,), 6)]),
    )
    gate_ED = make(moved, 3).float()
    chosen_N = (data.x_ND[against_N] @ gate_ED.t()).argmax(-1)
    assert (chosen_N != 0).float().mean() >= 0.95


@pytest.mark.parametrize("mode", ["router_input", "fitted"])
def test_gates_on_a_model_are_deterministic_and_tell_prompts_apart(mode: str, tmp_path: Path) -> None:
    base = StoredModel(make_models(tmp_path, count=0) / "base")
    encoder = prompt_encoder(base)
    experts = experts_of(["aaaa aaab", "abaa"], ["zzz yyzz", "yzzy"])
    gate_LED = router_gates(mode, base, encoder, experts)
    assert gate_LED.shape == (2, 2, 32)
    assert torch.equal(gate_LED, router_gates(mode, base, encoder, experts))
    for layer, gate_ED in zip(labelled_layers(base, encoder, experts), gate_LED, strict=True):
        # The start token is the same in all prompts.
        inner = layer.x_ND @ gate_ED.t()
        assert (inner.argmax(-1) == layer.label_N).float().mean() > 0.7


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 50), max_size=7), min_size=1, max_size=5).filter(any))
def test_padding_keeps_every_row(rows: list[list[int]]) -> None:
    for left, way in ((True, 1), (False, -1)):
        batch = TokenBatch.of(rows, padding=9, left=left)
        assert [row[real].tolist() for row, real in zip(batch.tokens_BT, batch.real_BT, strict=True)] == rows
        assert batch.real_BT.shape[1] == max(map(len, rows))
        assert (batch.real_BT.int().diff(dim=-1) * way >= 0).all()
        assert (batch.tokens_BT[~batch.real_BT] == 9).all()
