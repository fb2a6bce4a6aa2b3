"""What the kernels do not consume of a configuration is refused, whatever it is called."""

from typing import Any

import pytest
from tests.kernels.test_native_decoder import DENSE, FEATURES, MOE, YARN, config
from tests.kernels.test_native_layers import ORDERS

from moekit.config import Config, ModelConfig
from moekit.config.comparing import TRAINING_ONLY
from moekit.kernels.native.decoder_description import STORED_OTHERWISE, describe, rebuild, unsupported

SUPPORTED = FEATURES | ORDERS


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_supported_model_is_rebuilt_from_what_the_kernels_are_given(name: str) -> None:
    of = SUPPORTED[name]
    assert unsupported(of) is None
    assert describe(rebuild(describe(of))) == describe(of)


LINEAR = {"kind": "linear", "factor": 2.0}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "context": 16}
PLACES = {
    "model": ((), config()),
    "norm": (("norm",), config()),
    "layer": (("layers", 1), config()),
    "layer_norm": (("layers", 1, "norm"), config()),
    "attention": (("layers", 1, "attention"), config()),
    "linear_scaling": (("layers", 0, "attention", "rope_scaling"), config(attention={"rope_scaling": LINEAR})),
    "llama3_scaling": (("layers", 0, "attention", "rope_scaling"), config(attention={"rope_scaling": LLAMA3})),
    "yarn_scaling": (("layers", 0, "attention", "rope_scaling"), config(attention={"rope_scaling": YARN})),
    "dense": (("layers", 1, "feed_forward"), config(layers=[MOE, DENSE])),
    "moe": (("layers", 0, "feed_forward"), config(layers=[MOE, DENSE])),
    "router": (("layers", 0, "feed_forward", "router"), config(layers=[MOE, DENSE])),
}


def with_new_field(given: Any, path: tuple[Any, ...]) -> Any:
    """The same where the class of the configuration at `path` has got a field."""
    if not path:
        new = type(
            type(given).__name__, (type(given),), {"__annotations__": {"attention_sinks": int}, "attention_sinks": 0}
        )
        return new.model_construct(**dict(given), attention_sinks=4)
    first, *rest = path
    if isinstance(given, tuple):
        return tuple(with_new_field(part, tuple(rest)) if index == first else part for index, part in enumerate(given))
    return given.model_copy(update={first: with_new_field(getattr(given, first), tuple(rest))})


def written(path: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*path, "attention_sinks"))[1:]


@pytest.mark.parametrize("place", PLACES)
def test_a_field_that_a_configuration_gets_is_refused_by_name(place: str) -> None:
    path, of = PLACES[place]
    assert unsupported(of) is None
    assert unsupported(with_new_field(of, path)) == f"{written(path)} is 4"


def test_a_class_that_says_nothing_new_is_refused_too() -> None:
    """It may compute something else."""

    class OtherModel(ModelConfig):
        pass

    assert unsupported(OtherModel.model_construct(**dict(config()))) == "the model is a OtherModel"


def all_fields(kind: type[Config] = Config) -> set[str]:
    """The names of the fields of every configuration class."""
    return set(kind.model_fields).union(*map(all_fields, kind.__subclasses__()))


@pytest.mark.parametrize("listed", [TRAINING_ONLY, STORED_OTHERWISE])
def test_fields_that_may_be_passed_over_exist(listed: frozenset[str]) -> None:
    assert listed <= all_fields()


def test_what_is_of_training_or_of_the_weights_may_differ() -> None:
    router = {"top_k": 2, "balance_loss": 0.5, "z_loss": 0.25}
    of = config(layers=[MOE | {"router": router}], init_std=0.5, tie_embeddings=True, norm={"zero_centered": True})
    assert unsupported(of) is None
