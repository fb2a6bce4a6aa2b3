"""One thread, since tiny products are slower on two; and folders that all tests here read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.inference.tiny_models import TOKENIZERS, llama, mixtral, save_tokenizer
from tests.threads import one_torch_thread

from moekit.inference import LoadedModel, load_runner


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="session", params=["llama-byte_level", "mixtral-byte_fallback"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """transformers' model and tokenizer, and the folder that they were saved to."""
    model, tokenizer = request.param.split("-")
    folder = tmp_path_factory.mktemp("model")
    theirs = {"llama": llama, "mixtral": mixtral}[model](folder)
    return theirs, save_tokenizer(TOKENIZERS[tokenizer](), folder), folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a byte-level tokenizer."""
    made = tmp_path_factory.mktemp("llama")
    llama(made)
    save_tokenizer(TOKENIZERS["byte_level"](), made)
    return made


@pytest.fixture(scope="session")
def loaded(folder: Path) -> LoadedModel:
    return load_runner(folder)
