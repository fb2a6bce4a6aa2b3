"""Merges that end too early: killed at random moments, or for want of room; what is written in the end is the same."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tests.convert.merging.merge_recipes import make_models, plan_of, recipe, write_recipe
from tests.convert.merging.test_merge_adapters import DOWN, QUERY, save_adapter
from tests.convert.storage.killed_runs import killed

from moekit.convert.storage import streaming_writer as streaming
from moekit.convert.storage.partial_folder import partial_folder
from moekit.core.errors import MoekitError

pytest.importorskip("transformers")


def hard(folder: Path) -> dict[str, Any]:
    """A recipe with all that is computed: gates, an adapter, noise, an averaged backbone, another type."""
    save_adapter(folder / "lora", {DOWN: 4, QUERY: 4})
    data = recipe(folder, 3, gate_mode="router_input", backbone="average", dtype="bfloat16")
    data["experts"][0]["source_model"] += f"+{folder / 'lora'}"
    data["experts"][1]["noise_scale"] = 0.1
    return data


def test_merges_killed_at_random_moments(tmp_path: Path) -> None:
    """20 kills while planning, computing gates, writing and reporting."""
    folder = make_models(tmp_path)
    written = killed(tmp_path, 20, write_recipe(folder, hard(folder)))
    assert {"README.md", "checksums.json", "config.json", "report.json", "tokenizer.json"} <= written.keys()
    assert sum(name.endswith(".safetensors") for name in written) >= 2


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in one sentence; with room the same call goes on, with the same bytes."""
    folder, room, really = make_models(tmp_path), 60_000, os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if position + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, data, position)

    data, out = hard(folder), tmp_path / "x" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "_CHUNK_BYTES", 4096)
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(MoekitError, match=rf"disk is full while writing {out}"):
            plan_of(folder, data).run(out)
    assert not out.exists()
    assert partial_folder(out).exists()
    for target in (out, tmp_path / "y" / "out"):
        plan_of(folder, data).run(target)
    for file in out.iterdir():
        assert file.read_bytes() == (tmp_path / "y" / "out" / file.name).read_bytes(), file.name
