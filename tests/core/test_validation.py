"""What is wrong with a file of keys and values is told in the user's words: the path, what is there, what may be."""

import importlib
import math
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, create_model

import moekit
from moekit.agents.config.agents_config import AgentsConfig
from moekit.config import AttentionConfig, Config, ModelConfig
from moekit.convert.dense_to_moe.upcycling import Upcycling
from moekit.core.errors import UsageError
from moekit.core.validation import validate
from moekit.training.job import TrainingJob

# Words of pydantic, and of Python, that a user need not know.
JARGON = re.compile(
    r"Input should|Field required|[Vv]alid (?!are)|should (be|have)|Extra inputs|pydantic|tuple|\bdict|NoneType|"
    r"literal\[|type=|model_type|Unable to|function-"
)
WRONG = ("some words", "", -1, 10**30, 0.5, -0.5, math.nan, math.inf, True, None, [], [[]], [None], {}, {"a": 1})


def configurations() -> list[type[Config]]:
    """List every configuration class of the package."""
    for module in pkgutil.walk_packages(moekit.__path__, "moekit."):
        if ".kernels.native._native" not in module.name:
            importlib.import_module(module.name)

    def below(kind: type[Config]) -> Iterator[type[Config]]:
        for inner in kind.__subclasses__():
            yield inner
            yield from below(inner)

    return sorted({kind for kind in below(Config) if kind.__module__.startswith("moekit.")}, key=str)


def problem(model: type[BaseModel], data: Any) -> str | None:
    try:
        validate(model, data, where="here")
    except UsageError as error:
        return str(error)
    return None


def test_every_field_of_every_configuration_tells_what_is_wrong_with_it() -> None:
    for kind in configurations():
        for name, field in kind.model_fields.items():
            alone: Any = create_model("Alone", __base__=Config, **{name: (field.annotation, field)})
            told = [message for value in WRONG if (message := problem(alone, {name: value})) is not None]
            assert told, f"{kind.__name__}.{name} takes anything"
            for message in told:
                assert re.match(rf"here: {name}[:.\[]", message), message
                assert not JARGON.search(message), f"{kind.__name__}.{name}: {message}"
                assert len(message) < 400
                assert message.endswith((".", "?")), message


def test_every_key_that_is_read_is_among_the_valid_ones() -> None:
    for kind in configurations():
        message = problem(kind, {"qqqq": 1})
        assert message is not None
        assert message.startswith("here: qqqq: there is no such key; valid are ")
        valid = message.removeprefix("here: qqqq: there is no such key; valid are ").rstrip(".").split(", ")
        assert sorted({*kind.model_fields, *kind.also_read}) == valid


DENSE = {"kind": "dense", "width": 8}
DECODER = {
    "kind": "decoder",
    "vocab_size": 256,
    "width": 16,
    "context": 32,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 8, "windows": [4, None]},
    "block": "sandwich",
    "norm_eps": 1e-6,
    "layers": [DENSE],
}


def test_what_is_read_beside_the_fields_is_read() -> None:
    assert problem(ModelConfig, DECODER) is None
    used = {*DECODER, *DECODER["attention"]}  # type: ignore[misc]
    assert {*ModelConfig.also_read, *AttentionConfig.also_read} <= used


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attentoin": {}}, "model.attentoin: there is no such key; did you mean 'attention'?"),
        ({"layers": "two"}, "model.layers: must be a list, not 'two'."),
        ({"layers": []}, "model.layers: must be a list of 1 or more, not []."),
        ({"layers": [{"kind": "few"}]}, "model.layers[0].feed_forward: there is no kind 'few'; valid are dense, moe."),
        ({"layers": [{"width": 4}]}, "model.layers[0].feed_forward: the key kind is missing; valid are dense, moe."),
        ({"width": 1.5}, "model.width: must be a whole number, not 1.5."),
        ({"block": "before"}, "model.layers[0].block: there is no block 'before'; valid are"),
        ({"tie_embeddings": "perhaps"}, "model.tie_embeddings: must be true or false, not 'perhaps'."),
        ({"kind": "decodr"}, "model: there is no kind 'decodr'; did you mean 'decoder'?"),
        ({"embedding_scale": 0}, "model.embedding_scale: must be more than 0, not 0."),
        (
            {"layers": [{"attention": {"heads": 2, "kv_heads": 1, "head_width": 8}, "feed_forward": DENSE}]},
            "model.attention: this key is read only where layers lists feed-forward parts alone.",
        ),
    ],
)  # fmt: skip
def test_what_is_told_of_a_model(change: dict[str, Any], said: str) -> None:
    assert f"here: {said}" in (problem(TrainingJob, {"model": DECODER | change, "training": {"steps": 1}}) or "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "members: this key is missing."),
        ({"members": {}}, "members: must have 1 or more entries, not 0."),
        ({"members": {"a": {"path": 3}}}, "members.a.path: must be text, not 3."),
        ({"members": {"a": {"path": "b", "contxt": 3}}},
         "members.a.contxt: there is no such key; did you mean 'context'?"),
        ({"members": {"a": {"path": "b"}}, "strategies": {"s": {"kind": "moa", "layers": [[]], "aggregator": "a"}}},
         "strategies.s.layers[0]: must be a list of 1 or more, not []."),
        ({"members": ["a"]}, "members: must be keys and values, not ['a']."),
    ],
)  # fmt: skip
def test_what_is_told_of_agents(data: dict[str, Any], said: str) -> None:
    assert problem(AgentsConfig, data) == f"here: {said}"


def test_of_a_value_that_may_be_this_or_that_both_are_told() -> None:
    told = problem(Upcycling, {"layers": "some"})
    assert told == "here: layers: must be 'every' or 'alternate' or a list, not 'some'."
    assert problem(Upcycling, {"layers": [0, -1]}) == "here: layers[1]: must be 0 or more, not -1."
