"""What tests of whole conversions share: the dense models, and a machine that does not wait for nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.convert.dense_models import MODELS, save


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tensors as small as these, threads only wait for each other; and no test pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of dense models by their names."""
    root = tmp_path_factory.mktemp("dense")
    return {name: save(root, name) for name in MODELS}
