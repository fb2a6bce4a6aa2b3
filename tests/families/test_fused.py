"""Folders that hold all experts of a layer in two tensors, as transformers 5 has them in memory: read as the others."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.merging.merge_recipes import CASES, case_recipe, make_models, planned, write
from tests.families.round_trips import check_logits, save_theirs, stored_tensors
from tests.families.test_decoders import VOCAB, build_theirs
from torch import Tensor

from moekit.core.errors import MoekitError
from moekit.models import LanguageModel, load
from moekit.models.folder import own_tensors

pytest.importorskip("transformers")


def loaded(folder: Path) -> LanguageModel:
    model = load(folder)
    assert isinstance(model, LanguageModel)
    return model


def check_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype is b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def fused_of(names: Mapping[str, Tensor]) -> set[str]:
    return {name for name in names if name.endswith((".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"))}


@pytest.mark.parametrize("case", ["mixtral", "olmoe", "qwen2-moe-dense-among", "qwen3-moe", "deepseek-v3"])
def test_both_ways_of_writing_are_one_model(case: str, tmp_path: Path) -> None:
    theirs = build_theirs(case)
    one_each = save_theirs(theirs, tmp_path / "each")
    fused = tmp_path / "fused"
    theirs.save_pretrained(fused, save_original_format=False)
    assert fused_of(stored_tensors(fused))
    assert not fused_of(stored_tensors(one_each))
    ours = loaded(fused)
    check_bits(own_tensors(loaded(one_each)), own_tensors(ours))
    tokens_BT = torch.randint(0, VOCAB, (2, 12))
    with torch.no_grad():
        check_logits(theirs(tokens_BT).logits, ours(tokens_BT))
    # What came so goes so; from the configuration alone it has the names that everybody reads.
    ours.save(tmp_path / "again")
    check_bits(stored_tensors(fused), stored_tensors(tmp_path / "again"))
    ours.origin = None
    ours.save(tmp_path / "alone")
    check_bits(stored_tensors(one_each), stored_tensors(tmp_path / "alone"))


@pytest.mark.parametrize("case", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_what_a_merge_writes_fused_is_what_it_writes_one_by_one(case: str, tmp_path: Path) -> None:
    kind, settings, _ = CASES[case]
    folder = make_models(tmp_path, kind, **settings)
    recipe = case_recipe(folder, case, gate_mode="random", experts_per_token=1)
    for fused in (False, True):
        write(planned(folder, recipe, fused=fused), tmp_path / str(fused))
    assert fused_of(stored_tensors(tmp_path / "True"))
    check_bits(own_tensors(loaded(tmp_path / "False")), own_tensors(loaded(tmp_path / "True")))


def test_what_is_wrong_is_named_as_the_folder_names_it(tmp_path: Path) -> None:
    build_theirs("qwen3-moe").save_pretrained(tmp_path, save_original_format=False)
    file, name = tmp_path / "model.safetensors", "model.layers.1.mlp.experts.down_proj"
    tensors = load_file(file)
    taken = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(MoekitError, match=f"lacks the tensor '{name}'"):
        load(tmp_path)
    save_file(tensors | {name: taken.mT.contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(MoekitError, match=rf"'{name}'.*\[6, 16, 32\].*\[6, 32, 16\]"):
        load(tmp_path)


def test_an_origin_without_weights_is_there_for_its_tokenizer(tmp_path: Path) -> None:
    model = loaded(save_theirs(build_theirs("mixtral"), tmp_path / "theirs"))
    model.origin = tmp_path / "tokenizer"
    model.origin.mkdir()
    (model.origin / "vocab.json").write_text(json.dumps({"a": 0}))
    model.save(tmp_path / "saved")
    assert (tmp_path / "saved/vocab.json").is_file()
    check_bits(stored_tensors(tmp_path / "theirs"), stored_tensors(tmp_path / "saved"))
