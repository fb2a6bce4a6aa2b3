"""What moekit writes is the same model in the oldest version of transformers that it promises, and in the newest.

`MOEKIT_TRANSFORMERS_4` names the Python of an environment with transformers 4.57, which cannot be installed beside 5:

    python -m venv old && old/bin/pip install "transformers==4.57.*" torch==2.13.0
    MOEKIT_TRANSFORMERS_4=old/bin/python python -m pytest tests/families/test_transformers_versions.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.families.round_trips import check_logits, save_theirs
from tests.families.test_decoders import CASES, VOCAB, build_theirs, mean_of_vectors
from torch import Tensor

from moekit.models import load

OLD = os.environ.get("MOEKIT_TRANSFORMERS_4")
VERSIONS = [
    pytest.param(OLD, marks=pytest.mark.skipif(OLD is None, reason="MOEKIT_TRANSFORMERS_4 is not set"), id="4.57"),
    pytest.param(sys.executable, id="installed"),
]
_TOKENS_BT = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor]]:
    """Folders that moekit wrote, and the logits that each has: as it was read, and from the configuration alone."""
    found: dict[str, tuple[Path, Tensor]] = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp(case)
        model: Any = load(save_theirs(build_theirs(case), folder / "theirs", mean_of_vectors=mean_of_vectors(case)))
        with torch.no_grad():
            logits_BTV = model(_TOKENS_BT)
        for name in ("again", "alone"):
            model.save(folder / name)
            found[f"{case} {name}"] = folder / name, logits_BTV
            model.origin = None
    return found


@pytest.mark.parametrize("python", VERSIONS)
def test_what_is_written_is_read_as_the_same_model(
    python: str, written: dict[str, tuple[Path, Tensor]], tmp_path: Path
) -> None:
    # Windows of single layers of a mixture are written in our own format, which transformers has not.
    others = {name: both for name, both in written.items() if "moekit" not in (both[0] / "config.json").read_text()}
    assert len(others) > len(written) * 0.9
    (tmp_path / "tokens.json").write_text(json.dumps(_TOKENS_BT.tolist()))
    program = Path(__file__).with_name("logits_by_transformers.py")
    folders = [str(folder) for folder, _ in others.values()]
    result = subprocess.run(
        [python, str(program), str(tmp_path / "tokens.json"), *folders], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    version, _, problems = result.stdout.partition(" ")
    assert version.startswith("4.57." if python == OLD else "5.")
    assert json.loads(problems) == {}
    for name, (folder, logits_BTV) in others.items():
        try:
            check_logits(torch.from_numpy(np.load(folder / "logits.npy")), logits_BTV)
        except AssertionError as error:
            raise AssertionError(name) from error


def test_rope_and_types_are_said_twice(written: dict[str, tuple[Path, Tensor]]) -> None:
    for name, (folder, _) in written.items():
        settings = json.loads((folder / "config.json").read_text())
        assert settings["dtype"] == settings["torch_dtype"] == "float32", name
        rope = settings.get("rope_parameters")
        if rope is None or "full_attention" in rope:
            continue
        older = dict(settings["rope_scaling"] or {"rope_type": "default"})
        assert older | {"rope_theta": settings["rope_theta"]} == rope, name
