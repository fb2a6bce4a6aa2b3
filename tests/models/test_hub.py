"""Hub ids: what is asked for and what is done with the answer, with a stand-in for the download."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
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


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no connection\nand nothing in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        MoekitError, match=r"^someone/gone cannot be downloaded: no connection and nothing in the cache$"
    ):
        load("someone/gone")
