"""A disk that fails while a model is read from it: one sentence, whenever it does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tests.families.test_gguf import file_of, folder_of

EIO = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
static int calls;
ssize_t pread64(int file, void *into, size_t bytes, off_t at) {
    ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread64");
    if (bytes >= 4096 && ++calls > atoi(getenv("GOOD_READS"))) { errno = EIO; return -1; }
    return real(file, into, bytes, at);
}
ssize_t pread(int file, void *into, size_t bytes, off_t at) { return pread64(file, into, bytes, at); }
"""

READS = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.placement.streamed_runner import streamed
from moekit.core.errors import MoekitError
try:
    runner = streamed(Path({path!r}), **{on_disk!r})
    cache = runner.new_cache()
    for step in range(40):
        runner.decode([cache], [step])
except MoekitError as error:
    sys.exit(f"said: {{error}}")
"""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=100, intermediate_size=96, num_local_experts=6, num_experts_per_tok=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    _, folder = folder_of(config, tmp_path_factory.mktemp("mixtral") / "model")
    return file_of(folder, "q8_0")


@pytest.mark.parametrize("on_disk", [{"places": 1}, {"kept": set()}, {"places": 2, "kept": {1}}])
@pytest.mark.parametrize("good", [0, 3, 40, 120])
def test_a_disk_that_fails_is_one_sentence(
    good: int, on_disk: dict[str, object], mixture: Path, tmp_path: Path
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    (tmp_path / "eio.c").write_text(EIO)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "eio.so", tmp_path / "eio.c", "-ldl"], check=True)
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", READS.format(root=root, path=str(mixture), on_disk=on_disk)],
        env=os.environ | {"LD_PRELOAD": str(tmp_path / "eio.so"), "GOOD_READS": str(good)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith(f"said: Cannot read {mixture}: Input/output error.")
