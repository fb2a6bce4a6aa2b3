"""A model's file that is cut while it is in use ends the process with a sentence and status 1, wherever it is read."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import DENSE, model_config

import moekit
from moekit.kernels import native
from moekit.models import Decoder

pytestmark = pytest.mark.skipif(not native.available(), reason="the signal is caught by the compiled module")
CUT = "os.truncate(path, 4096)"
USES = {
    "unpacking, in Python": f"file = GGUFFile(Path(path)); {CUT}; file.numbers('output.weight')",
    "unpacking, in native threads": (
        f"file = GGUFFile(Path(path)); {CUT}; native.dequantize(file.packed('output.weight'))"
    ),
    "generating": f"model = moekit.load_runner(path); {CUT}; moekit.generate(model, 'a', max_tokens=4)",
    "a second file, after the first was forgotten": (
        f"GGUFFile(Path(path)); file = GGUFFile(Path(path)); {CUT}; file.numbers('output.weight')"
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("model")
    Decoder(model_config((DENSE, DENSE))).save(folder / "model")
    moekit.quantize(folder / "model", folder / "model.gguf", "f32")
    return (folder / "model.gguf").read_bytes()


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    imports = "import os, signal, sys, moekit; from pathlib import Path; path = sys.argv[1]; "
    imports += "from moekit.kernels import native; from moekit.checkpoint.gguf import GGUFFile; "
    command = [sys.executable, "-c", imports + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("use", USES)
def test_a_file_that_is_cut_is_told(use: str, model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model)
    result = run(USES[use], str(path))
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: {path} became shorter while it was in use")
    assert result.stderr.count("\n") == 1


def test_signals_of_other_addresses_go_where_they_went(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model)
    handled = "signal.signal(signal.SIGBUS, lambda *_: sys.exit(7)); file = GGUFFile(Path(path)); "
    assert run(handled + "os.kill(os.getpid(), signal.SIGBUS); signal.pause()", str(path)).returncode == 7
    assert run("file = GGUFFile(Path(path)); os.kill(os.getpid(), signal.SIGBUS)", str(path)).returncode < 0
