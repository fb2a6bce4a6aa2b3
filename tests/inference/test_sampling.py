"""Drawing tokens against transformers' logits processors, and what seeds promise."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moekit.core.errors import MoekitError, UsageError
from moekit.inference.probabilities import Doubles, softmax
from moekit.inference.sampling import Sampler, SamplingOptions, adjusted, candidates, pick

WORDS = 24


def theirs(options: SamplingOptions) -> LogitsProcessorList:
    """In the order in which transformers puts them together."""
    bias = {(id_,): value for id_, value in options.logit_bias.items()}
    chain: list[tuple[bool, Callable[[], Any]]] = [
        (bool(bias), lambda: SequenceBiasLogitsProcessor(bias)),
        (options.repetition_penalty != 1, lambda: RepetitionPenaltyLogitsProcessor(options.repetition_penalty)),
        (True, lambda: TemperatureLogitsWarper(options.temperature)),
        (options.top_k > 0, lambda: TopKLogitsWarper(options.top_k)),
        (options.top_p < 1, lambda: TopPLogitsWarper(options.top_p)),
        (options.min_p > 0, lambda: MinPLogitsWarper(options.min_p)),
    ]
    return LogitsProcessorList(make() for wanted, make in chain if wanted)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, WORDS + 2),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.2, 1e-6]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    bias=st.dictionaries(st.integers(0, WORDS - 1), st.floats(-5, 5), max_size=3),
)
def test_probabilities_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, bias: dict[int, float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # In fp64, where no sum comes so near to top_p that its rounding decides.
    logits_BV = torch.randn(3, WORDS, generator=generator, dtype=torch.float64) * 3
    seen_BT = torch.randint(WORDS, (3, 5), generator=generator)
    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        logit_bias={id_: float(torch.tensor(value)) for id_, value in bias.items()},  # theirs is kept in fp32
    )
    expected_BV = theirs(options)(seen_BT, logits_BV).softmax(-1)
    sampler = Sampler(options, WORDS, seen_BT.tolist())
    ours_BN, ids_BN = candidates(adjusted(logits_BV.numpy(), sampler._bias_V, sampler._seen_BV, penalty), options)
    ours_BV = np.zeros(expected_BV.shape)
    np.put_along_axis(ours_BV, ids_BN, softmax(ours_BN), 1)
    np.testing.assert_allclose(ours_BV, expected_BV.numpy(), rtol=1e-9, atol=1e-12)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    ids_N, count = np.array([4, 1, 0, 3, 2]), 4000
    uniform_B = (np.arange(count) + 0.5) / count
    drawn_B = pick(rows_of([0.5, 0.0, 0.3, 0.2, 0.0], count), np.tile(ids_N, (count, 1)), uniform_B)
    assert np.bincount(drawn_B, minlength=5).tolist() == [1200, 0, 0, 800, 2000]
    # At both ends of [0, 1) there is nobody who has no part of it.
    ends_B = np.array([0.0, 1 - 2**-53])
    assert pick(rows_of([0.0, 0.5, 0.3, 0.2, 0.0], 2), np.tile(ids_N, (2, 1)), ends_B).tolist() == [1, 3]


def rows_of(share_N: list[float], count: int) -> Doubles:
    """The logarithms, `count` times."""
    with np.errstate(divide="ignore"):
        return np.tile(np.log(share_N), (count, 1))


def test_what_is_drawn_does_not_depend_on_the_batch() -> None:
    options = SamplingOptions(temperature=1, top_p=0.9, repetition_penalty=1.2, seed=7)
    prompts = [[1, 2], [3], [4, 4, 4]]
    logits_SBV = np.random.default_rng(0).standard_normal((6, 3, WORDS), np.float32)
    together = Sampler(options, WORDS, prompts)
    drawn_SB = np.array([together.draw(logits_BV, [0, 1, 2]) for logits_BV in logits_SBV])
    for row, prompt in enumerate(prompts):
        alone = Sampler(options, WORDS, [prompt])
        for step, logits_BV in enumerate(logits_SBV):
            assert alone.draw(logits_BV[row : row + 1], [0]) == [drawn_SB[step, row]]
    # A sequence that has ended leaves the others what they would have got.
    rest = Sampler(options, WORDS, prompts)
    rest.draw(logits_SBV[0], [0, 1, 2])
    assert rest.draw(logits_SBV[1, [0, 2]], [0, 2]) == drawn_SB[1, [0, 2]].tolist()


def test_seeds() -> None:
    logits_BV = np.zeros((1, 4096), np.float32)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1, seed=seed), 4096, [[0]])
        return [sampler.draw(logits_BV, [0])[0] for _ in range(4)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)


def test_greedy_takes_the_most_probable_after_bias_and_penalty() -> None:
    logits_BV = np.array([[1.0, 3.0, 2.5, -9.0]], np.float32)
    assert Sampler(SamplingOptions(), 4, [[0]]).draw(logits_BV, [0]) == [1]
    assert Sampler(SamplingOptions(logit_bias={3: 13.0}), 4, [[0]]).draw(logits_BV, [0]) == [3]
    penalized = Sampler(SamplingOptions(repetition_penalty=1.25), 4, [[0]])
    assert [penalized.draw(logits_BV, [0])[0] for _ in range(3)] == [1, 2, 1]
    two = Sampler(SamplingOptions(repetition_penalty=2), 2, [[0], [1]])
    assert two.draw(np.ones((1, 2), np.float32), [1]) == [0]  # the second has seen 1, the first 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"logit_bias": {1: math.inf}},
        {"seed": -1},
    ],
)
def test_what_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(options))} must be"):
        SamplingOptions(**options)


def test_a_bias_of_no_token_and_logits_that_are_no_numbers() -> None:
    with pytest.raises(UsageError, match="names token 24, and the model has 24"):
        Sampler(SamplingOptions(logit_bias={WORDS: 1.0}), WORDS, [[0]])
    broken = np.zeros((1, WORDS), np.float32)
    for broken[0, 3] in (np.nan, np.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(MoekitError, match="not numbers"):
                Sampler(SamplingOptions(temperature=temperature), WORDS, [[0]]).draw(broken, [0])


def test_a_temperature_near_0_takes_the_most_probable() -> None:
    """Though every logit divided by it is more than any number holds."""
    logits_BV = np.array([[-3.0, 2.0, 1.5, -np.inf]], np.float32)
    options = SamplingOptions(temperature=1e-308, top_p=0.9, min_p=0.1, seed=0)
    assert Sampler(options, 4, [[0]]).draw(logits_BV, [0]) == [1]
