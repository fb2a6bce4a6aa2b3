"""Folders that are not what they say: one sentence that names file and tensor, nothing read, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.conftest import MOE, model_config

from moekit.config import ModelConfig, MoEConfig, SwitchConfig
from moekit.core.errors import MoekitError
from moekit.models import Decoder, load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Decoder(model_config((MOE, MOE))).save(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == "mixtral"
    return tmp_path / "model"


def change_settings(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_any_decoder_comes_back_the_same(any_config: ModelConfig, tmp_path: Path) -> None:
    model = Decoder(any_config).eval()
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    tokens = torch.randint(0, 256, (2, 9))
    with torch.no_grad():
        assert torch.equal(model(tokens), again(tokens))
    assert again.config == any_config or again.config.model_dump() == any_config.model_dump()


def test_what_no_other_format_can_say_is_kept_in_our_own(tmp_path: Path) -> None:
    layer = MoEConfig(experts=4, expert_width=24, router=SwitchConfig())
    config = model_config((layer,))
    Decoder(config).save(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == "moekit_decoder"
    assert load(tmp_path / "model").config == config


def test_a_folder_that_holds_something_is_left_alone(folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(MoekitError, match="model"):
        Decoder(model_config()).save(folder)
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llamma"}, "model_type is 'llamma'"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, "model_type must be text"),
        ({"intermediate_size": None}, "intermediate_size is null"),
        ({"intermediate_size": "48"}, "intermediate_size must be an integer"),
        ({"hidden_act": "swish2"}, "hidden_act is 'swish2'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"rope_parameters": {"rope_type": "warp"}}, "rope_type"),
        ({"rope_parameters": []}, "rope_parameters must be an object"),
        ({"model_type": "moekit_decoder"}, "moekit is missing"),
        ({"model_type": "moekit_decoder", "moekit": {"widht": 3}}, "did you mean 'width'"),
    ],
)
def test_settings_that_cannot_be(folder: Path, changes: dict[str, object], named: str) -> None:
    change_settings(folder, **changes)
    with pytest.raises(MoekitError, match=r"config\.json") as caught:
        load(folder)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '"x"', "\ud83d", "{" * 10_000])
def test_a_config_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(MoekitError, match=r"config\.json"):
        load(folder)


def test_a_size_that_the_file_does_not_have_is_found_before_memory_is_taken(folder: Path) -> None:
    """A petabyte of experts, if it were believed."""
    change_settings(folder, num_local_experts=5_000, intermediate_size=2**36)
    with pytest.raises(MoekitError, match=r"tensor|Tensor"):
        load(folder)


def test_tensors_that_do_not_fit(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"extra.weight": torch.zeros(3)}))
    with pytest.raises(MoekitError, match=r"model\.safetensors.*'extra\.weight'"):
        load(folder)
    change_tensors(folder, lambda tensors: (tensors.pop("extra.weight"), tensors.pop("model.norm.weight")))
    with pytest.raises(MoekitError, match=r"'model\.norm\.weight'"):
        load(folder)
    change_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}))
    with pytest.raises(MoekitError, match=r"'model\.norm\.weight'.*\[31\].*\[32\]"):
        load(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_config_loads_or_says_what_is_wrong(folder: Path, data: st.DataObject) -> None:
    file = folder / "config.json"
    original = file.read_bytes()
    values = json.loads(original)
    key = data.draw(st.sampled_from(sorted(values)))
    scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5)
    values[key] = data.draw(
        scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=2)
    )
    file.write_text(json.dumps(values))
    said = ""
    try:
        load(folder)
    except MoekitError as error:
        said = str(error)
    finally:
        file.write_bytes(original)
    assert "\n" not in said
