"""GGUF files with bytes changed or cut off: an error in one sentence, or a file whose tensors all lie inside it."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.checkpoint.gguf_samples import sample

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFFile, Strings
from moekit.core.errors import MoekitError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return sample(tmp_path_factory.mktemp("gguf") / "sample.gguf").read_bytes()


def open_all(content: bytes) -> None:
    """Open it and look at everything; whatever is wrong has to be a MoekitError."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            opened = GGUFFile(Path(file.name))
        except MoekitError as error:
            said = str(error)
        else:
            look_at_all(opened, len(content))
            return
    assert "\n" not in said
    assert len(said) < 1000


def look_at_all(opened: GGUFFile, size: int) -> None:
    for value in opened.metadata.values():
        if isinstance(value, Strings):
            value.raw()
    for tensor in opened.tensors.values():
        assert 0 <= tensor.start <= tensor.start + tensor.size <= size
        assert opened.bytes_of(tensor.name).size == tensor.size
        if tensor.code in PACKED_TYPES:
            assert opened.rows(tensor.name).shape == (tensor.rows, tensor.columns)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes(original: bytes, data: st.DataObject) -> None:
    content = bytearray(original)
    # Where the header is; data may hold anything.
    for place in data.draw(st.lists(st.integers(0, 1200), min_size=1, max_size=4)):
        content[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    open_all(bytes(content))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 5000), tail=st.binary(max_size=64))
def test_cut_off_and_continued(original: bytes, length: int, tail: bytes) -> None:
    open_all(original[:length] + tail)


def test_every_truncation_of_the_header_is_an_error(original: bytes, tmp_path: Path) -> None:
    whole = GGUFFile(_written(tmp_path / "whole", original))
    first = min(tensor.start for tensor in whole.tensors.values())
    for length in range(0, first, 7):
        with pytest.raises(MoekitError):
            GGUFFile(_written(tmp_path / f"{length}", original[:length]))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
