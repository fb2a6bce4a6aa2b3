"""What `moekit generate model.gguf` imports before its first token: nothing that only training or other models need."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.inference.tiny_models import byte_level, llama, save_tokenizer

import moekit.data
import moekit.families
from moekit.cli.generate_and_chat import garbage_collection_paused
from moekit.convert.export.gguf_export import plan_quantization
from moekit.kernels.native import available
from moekit.kernels.packed import Q8_0

# With all below them. The GGUF package writes; transformers and the hub are for folders; rich is for terminals; torch
# takes longer to import than all the rest together.
NOT_NEEDED = (
    "datasets",
    "gguf",
    "huggingface_hub",
    "jinja2",
    "moekit.comparison",
    "moekit.convert",
    "moekit.data.batches",
    "moekit.data.corpus",
    "moekit.data.documents",
    "moekit.data.held_out",
    "moekit.families.catalogue",
    "moekit.models",
    "moekit.training",
    "openai",
    "plotly",
    "rich",
    "torch",
    "transformers",
    "yaml",
)
MODULES = """
import json, sys
from moekit.cli.generate import generate
generate(sys.argv[1:], standalone_mode=False)
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
SECONDS = """
import time
from moekit.cli.generate_and_chat import garbage_collection_paused
with garbage_collection_paused():
    begin = time.process_time()
    import moekit.core.hardware, moekit.inference.prompt_tokens
    done = time.process_time()
    import torch
    print(done - begin, time.process_time() - done)
"""


def in_a_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )


@pytest.mark.skipif(not available(), reason="without native kernels torch's modules compute")
def test_what_is_imported(tmp_path: Path) -> None:
    llama(tmp_path / "model")
    save_tokenizer(byte_level(), tmp_path / "model")
    plan_quantization(tmp_path / "model", Q8_0).run(tmp_path / "model.gguf")
    done = in_a_child(MODULES, str(tmp_path / "model.gguf"), "--prompt", "The quick", "--max-tokens", "2")
    imported = json.loads(done.stderr.splitlines()[-1])
    assert done.stdout.strip()
    assert {"moekit.inference.native_runner", "moekit.data.gguf_tokenizer"} <= set(imported)
    for name in NOT_NEEDED:
        assert not [module for module in imported if module == name or module.startswith(f"{name}.")]


@pytest.mark.alone
def test_imports_take_no_longer_than_a_fraction_of_torchs() -> None:
    """Seconds of the processor, the least of three: on an idle machine a third of torch's, which are about one."""
    runs = [[float(word) for word in in_a_child(SECONDS).stdout.split()] for _ in range(3)]
    assert min(own for own, _ in runs) < 0.5 * min(torch for _, torch in runs)


def test_garbage_is_looked_for_again_after_the_start() -> None:
    with garbage_collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), garbage_collection_paused():
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("package", [moekit.data, moekit.families])
def test_names_are_there_when_they_are_asked_for(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing  # type: ignore[attr-defined]
