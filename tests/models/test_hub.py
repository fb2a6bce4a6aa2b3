"""Hub ids: what is asked for and what is done with the answer, with a stand-in for the download."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from tests.conftest import model_config

from moekit.core.errors import MoekitError
from moekit.models import Decoder, load


def test_a_hub_id_is_downloaded_without_code_or_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Decoder(model_config()).save(tmp_path / "snapshot")
    asked = []

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert isinstance(load("someone/some-model"), Decoder)
    ((repo_id, patterns),) = asked
    assert repo_id == "someone/some-model"
    assert "*.safetensors" in patterns
    assert not any(pattern.endswith((".py", ".bin", ".bin*", "*")) for pattern in patterns)


def test_old_weights_are_fetched_only_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked: list[list[str]] = []

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(MoekitError, match="model_type is missing"):
        load("someone/old-model")
    assert len(asked) == 2
    assert "pytorch_model*.bin*" in asked[1]


NOT_LOADED = "There is no folder 'someone/gone', and as a hub id it cannot be downloaded"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            LocalEntryNotFoundError("Got: no route to host\nAn error happened. Please check this and that."),
            f"{NOT_LOADED} (no route to host); check the name and the network, or give a folder.",
        ),
        (
            OfflineModeIsEnabled("Offline mode is enabled."),
            f"{NOT_LOADED} (Offline mode is enabled); check the name and the network, or give a folder.",
        ),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),
            "There is no folder 'someone/gone', and the hub shows no such model; for one that is private or gated, set "
            "HF_TOKEN to a token that may read it.",
        ),
        (
            HFValidationError("Cannot have -- or .. in repo_id"),
            "There is no folder 'someone/gone', and it is no hub id (owner/name).",
        ),
    ],
)
def test_a_model_that_cannot_be_downloaded_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(MoekitError) as told:
        load("someone/gone")
    assert str(told.value) == said


@pytest.mark.parametrize(
    ("model", "said"),
    [
        *((name, f"There is no file {name!r}.") for name in ("a.gguf", "models/a.gguf", "./A.GGUF", "a/b.safetensors")),
        ("a/b.arpa", "There is no file 'a/b.arpa'."),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b is an address; the model's hub id is a/b."),
        ("hf.co/some/one", "hf.co/some/one is an address; the model's hub id is some/one."),
        ("a/b/c", "There is no folder 'a/b/c', and it is no hub id (owner/name)."),
        ("gpt2", "There is no folder 'gpt2', and it is no hub id (owner/name). "
         "It is the name of a preset, which has no weights."),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_is_told_by_what_its_name_looks_like(model: str, said: str) -> None:
    with pytest.raises(MoekitError) as told:
        load(model)
    assert str(told.value) == said
