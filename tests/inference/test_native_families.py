"""Files of every architecture, prompt and steps computed by the native kernels, against the module made of the file."""

from pathlib import Path

import pytest
import torch
from tests.families.test_gguf import MODELS, file_of, folder_of

from moekit.families.gguf import GGUFModel
from moekit.inference.native_runner import NativeRunner
from moekit.kernels.native.decoder import unsupported
from moekit.models.gguf import load_gguf


@pytest.mark.parametrize("name", sorted(MODELS))
def test_native_equals_torch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = file_of(folder_of(MODELS[name][1], tmp_path / "model")[1])
    stored, module = GGUFModel(path), load_gguf(path)
    if name == "llama-biases":
        assert unsupported(stored.config) is not None
        return
    runner = NativeRunner(stored.config, stored.weights())
    cache, tokens = runner.new_cache(), torch.randint(0, 96, (28,)).tolist()
    got = [torch.as_tensor(runner.prefill(cache, tokens[:19])).flatten()]
    got += [torch.as_tensor(runner.decode([cache], [token])).flatten() for token in tokens[19:]]
    with torch.no_grad():
        expected_TV = module(torch.tensor([tokens]))[0, 18:]
    assert (torch.stack(got) - expected_TV).abs().max() <= 1e-5 * expected_TV.std()
