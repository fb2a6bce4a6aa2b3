"""transformers reads what is written here, and what it writes is read."""

from pathlib import Path

import pytest
import torch
from tests.checkpoint.sample_layout import read_all, same_bits
from torch import Tensor, nn

from moekit.checkpoint.layout import stored
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.write_weights import write_folder, write_weights
from moekit.core.errors import MoekitError

transformers = pytest.importorskip("transformers")


def llama(*, tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        dtype=torch.bfloat16,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    return model


def stored_of(model: nn.Module) -> dict[str, Tensor]:
    """Tied weights under their first name, as they are saved."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shard", ["20KB", "1GB"])
@pytest.mark.parametrize("tied", [False, True])
def test_theirs(tmp_path: Path, tied: bool, shard: str) -> None:
    model = llama(tied=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert len({info.file for info in StoredTensors.open(tmp_path).values()}) == 1 or shard == "20KB"
    assert same_bits(read_all(tmp_path), stored_of(model))


@pytest.mark.parametrize("shard_bytes", [20_000, 10**9])
@pytest.mark.parametrize("tied", [False, True])
def test_ours(tmp_path: Path, tied: bool, shard_bytes: int) -> None:
    model = llama(tied=tied)
    parameters = stored_of(model)

    def fill(folder: Path) -> None:
        model.config.save_pretrained(folder)
        write_weights(folder, [stored(name, name) for name in parameters], parameters, shard_bytes=shard_bytes)

    write_folder(tmp_path / "out", fill)
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert same_bits(stored_of(loaded), parameters)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_shard_that_did_not_arrive(tmp_path: Path) -> None:
    llama(tied=False).save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.write_bytes(lost.read_bytes()[:-1])
    with pytest.raises(MoekitError, match=f"{lost.name} is damaged"):
        StoredTensors.open(tmp_path)
    lost.unlink()
    with pytest.raises(MoekitError, match=f"{lost.name}; download"):
        StoredTensors.open(tmp_path)
