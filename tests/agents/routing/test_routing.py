"""Features, classifier, neighbours and examples of routes, each against an obvious form of itself."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.agents.config.strategy_configs import RouteConfig
from moekit.agents.routing.classifier import Classifier
from moekit.agents.routing.examples import read_examples
from moekit.agents.routing.features import FEATURES, TfIdf, normalized
from moekit.agents.routing.nearest import Nearest
from moekit.core.errors import UsageError


def grams(text: str) -> Counter[int]:
    """The features of a text, one n-gram at a time."""
    data, found = text.encode(), Counter[int]()
    for length in (1, 2, 3, 4):
        for start in range(len(data) - length + 1):
            number = int.from_bytes(bytes([length]) + data[start : start + length], "big")
            found[(number * 0x9E3779B97F4A7C15) % 2**64 >> 52] += 1
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.text(max_size=30))
def test_features_are_those_of_the_loop(texts: list[str], question: str) -> None:
    counted = [grams(text) for text in texts]
    expected = np.zeros(FEATURES)
    for feature, count in grams(question).items():
        holding = sum(feature in each for each in counted)
        expected[feature] = (1 + math.log(count)) * (math.log((1 + len(texts)) / (1 + holding)) + 1)
    length = math.sqrt(sum(value**2 for value in expected))
    (found,) = TfIdf(texts)([question])
    np.testing.assert_allclose(found, expected / (length or 1), rtol=1e-12, atol=1e-15)


def test_hashes_spread_over_the_features() -> None:
    words = [f"{number:04}" for number in range(3000)]
    features = {feature for word in words for feature, _ in [grams(word).most_common()[-1]]}
    assert len(features) > 0.8 * FEATURES * (1 - math.exp(-3000 / FEATURES))


def test_the_classifier_is_at_the_minimum_of_its_objective() -> None:
    generator = np.random.default_rng(0)
    classes = [0] * 30 + [1] * 6 + [2] * 12
    x = normalized(generator.normal(size=(48, 20)) + np.eye(20)[classes])
    classifier = Classifier(x, classes, 3)
    # The objective as the docstring has it, classes weighing the same; it is convex, so that its minimum has no slope.
    inputs, target = torch.tensor(np.concatenate([x, np.ones((48, 1))], axis=1)), torch.tensor(classes)

    def slope(weight: np.ndarray) -> float:
        weight_FK = torch.tensor(weight, requires_grad=True)
        losses = torch.nn.functional.cross_entropy(inputs @ weight_FK, target, reduction="none")
        mean = torch.stack([losses[target == index].mean() for index in range(3)]).mean()
        (gradient_FK,) = torch.autograd.grad(mean + 1e-3 / 2 * weight_FK.square().sum(), weight_FK)
        return float(gradient_FK.norm())

    assert slope(np.zeros((21, 3))) > 0.1
    assert slope(classifier.weight_FK) < 1e-6
    expected_NK = (inputs @ torch.tensor(classifier.weight_FK)).softmax(-1)
    np.testing.assert_allclose(classifier(x), expected_NK, rtol=1e-12)
    np.testing.assert_array_equal(classifier.weight_FK, Classifier(x, classes, 3).weight_FK)


def test_a_class_of_few_examples_is_not_drowned() -> None:
    # One feature speaks for each class, and a question holds half of each.
    x = np.eye(2)[[0] * 50 + [1] * 2]
    ((first, second),) = Classifier(x, [0] * 50 + [1] * 2, 2)(normalized(np.ones((1, 2))))
    assert first == pytest.approx(second, abs=1e-6)


def test_neighbours_are_those_of_the_loop() -> None:
    generator = np.random.default_rng(1)
    examples, questions = (normalized(generator.normal(size=(count, 6))) for count in (30, 10))
    classes = [int(index) for index in generator.integers(0, 3, 30)]
    found = Nearest(examples, classes, 3)(questions)
    for question, scores in zip(questions, found, strict=True):
        cosines = sorted(((max(float(example @ question), 0), -place) for place, example in enumerate(examples)))[-5:]
        expected = [sum(cosine for cosine, place in cosines if classes[-place] == index) for index in range(3)]
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_fewer_examples_than_neighbours_and_an_empty_question() -> None:
    nearest = Nearest(np.eye(2), [0, 1], 2)
    np.testing.assert_allclose(nearest(np.array([[0.6, 0.8], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(nearest(np.array([[-0.6, 0.8]])), [[0, 0.8]])


TEXTS = {"code": ("def f(x):", "import os"), "prose": ("Once upon a time", "It was a dark night")}


def route(**settings: object) -> RouteConfig:
    return RouteConfig.model_validate({"by": "examples", "members": ["code", "prose"], **settings})


def test_examples_stand_in_the_configuration_and_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text('{"text": "a\\u2028b", "member": "prose"}\n\n{"text": "for i in x:", "member": "code"}\n')
    found = read_examples(route(examples=TEXTS, data=file))
    assert found.texts == (*TEXTS["code"], *TEXTS["prose"], "a\u2028b", "for i in x:")
    assert found.places == (0, 0, 1, 1, 1, 0)
    assert read_examples(route(data=file)).places == (1, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: not valid JSON"),
        ("[1]", "line 1: must be keys and values"),
        ('\n{"text": "x", "memer": "code"}', "line 2: memer: there is no such key; did you mean 'member'"),
        ('{"text": "x", "member": "cod"}', "line 1: there is no member 'cod'; did you mean 'code'"),
        ('{"text": "x", "member": "code"}', "No example goes to prose"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_examples(route(data=file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read .*absent\.jsonl"):
        read_examples(route(data=tmp_path / "absent.jsonl"))
