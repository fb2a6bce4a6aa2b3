"""ARPA files: written whole, read as they were written, refused where they are not sound."""

import contextlib
import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.core.errors import MoekitError, UsageError
from moekit.models.ngram import NGram, load_arpa
from moekit.models.ngram.lines import number_texts

VALID = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-1.5\t<unk>\t0
0\t<s>\t-0.3
-0.7\t</s>
-0.6\ta\t-0.2
-0.8\té\u00a0b\t0.1

\\2-grams:
-0.4\t<s> a\t-0.1
-0.5\ta é\u00a0b\t-0.25
-0.45\té\u00a0b </s>\t0
-0.55\té\u00a0b a

\\3-grams:
-0.2\t<s> a é\u00a0b
-0.1\ta é\u00a0b </s>

\\end\\
"""


def saved(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def scores(model: NGram) -> torch.Tensor:
    return model.log_prob(torch.cartesian_prod(*[torch.arange(len(model.vocabulary))] * 3))


def test_reads_what_others_write(tmp_path: Path) -> None:
    model = load_arpa(saved(tmp_path / "m.arpa", VALID))
    assert (model.order, model.ngrams, list(model.vocabulary.words)) == (3, (5, 4, 2), ["a", "é\u00a0b"])
    (line,) = model.score_sentences(["a é\u00a0b é\u00a0b x"])
    backed_off = [-0.25 + 0.1 - 0.8, 0.1 - 1.5, 0 - 0.7]
    assert line.tolist() == pytest.approx([-0.4, -0.2, *backed_off])
    (line,) = model.score_sentences([b"a \xc3\xa9\xc2\xa0b"])
    assert line.tolist() == pytest.approx([-0.4, -0.2, -0.1])
    windows = saved(tmp_path / "w.arpa", VALID.replace("\n", "\r\n").replace("\t", " ").replace("<unk>", "<UNK>"))
    assert torch.equal(scores(load_arpa(windows)), scores(model))
    with gzip.open(tmp_path / "z.arpa", "wb") as file:
        file.write(VALID.encode())
    assert torch.equal(scores(load_arpa(tmp_path / "z.arpa")), scores(model))


def test_writing_what_was_read_changes_nothing(tmp_path: Path, text: Path) -> None:
    model = load_arpa(saved(tmp_path / "m.arpa", VALID))
    model.save(tmp_path / "again.arpa")
    assert torch.equal(scores(load_arpa(tmp_path / "again.arpa")), scores(model))
    trained = NGram.train_words(text, order=4)
    trained.save(tmp_path / "one.arpa")
    read = load_arpa(tmp_path / "one.arpa")
    torch.testing.assert_close(scores(read), scores(trained), rtol=0, atol=1e-11)
    read.save(tmp_path / "two.arpa")
    assert (tmp_path / "one.arpa").read_bytes() == (tmp_path / "two.arpa").read_bytes()
    assert torch.equal(scores(load_arpa(tmp_path / "two.arpa")), scores(read))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-999, 999) | st.floats(-3, 0), min_size=1, max_size=20))
def test_numbers_as_text(numbers: list[float]) -> None:
    text, starts, lengths = number_texts(np.array(numbers))
    found = [text[a : a + n].tobytes().decode() for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    assert [float(each) for each in found] == pytest.approx(numbers, abs=6e-13)
    again, starts, lengths = number_texts(np.array([float(each) for each in found]))
    assert found == [
        again[a : a + n].tobytes().decode() for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


def test_numbers_are_short() -> None:
    numbers = np.array([0.0, -0.0, -1e-15, -1.0, -99.0, 999.0, -0.5, -12.25, 0.999999999999999])
    text, starts, lengths = number_texts(numbers)
    found = [text[a : a + n].tobytes().decode() for a, n in zip(starts, lengths, strict=True)]
    assert found == ["0", "0", "0", "-1", "-99", "999", "-0.5", "-12.25", "1"]
    assert number_texts(np.array([-1234.5, 2.0]))[0].tobytes() == b"-1234.52.0\n"


HOSTILE = {
    "empty": ("", r"\data\ is missing", 0),
    "no header": ("hello\n" + VALID, r"\data\ is missing", 1),
    "cut header": ("\\data\\\nngram 1=5\n", "ends within its header", 2),
    "not a count": (VALID.replace("ngram 2=4", "ngram 2=x"), "a line like 'ngram 1=1000' is missing", 3),
    "negative count": (VALID.replace("ngram 2=4", "ngram 2=-4"), "a line like 'ngram 1=1000' is missing", 3),
    "endless count": (VALID.replace("ngram 2=4", "ngram 2=" + "9" * 99), "a line like 'ngram 1=1000' is missing", 3),
    "gap in the orders": (VALID.replace("ngram 2=4\n", ""), "the count of 2-grams is missing", 3),
    "absurd order": (
        "\\data\\\n" + "".join(f"ngram {order}=1\n" for order in range(1, 99)),
        "an order above 16 is not supported",
        18,
    ),
    "huge count": (VALID.replace("ngram 3=2", f"ngram 3={10**17}"), "fewer 3-grams than the 100000000000000000", 22),
    "too few": (VALID.replace("ngram 2=4", "ngram 2=5"), "there are fewer 2-grams than the 5 of the header", 18),
    "too many": (VALID.replace("ngram 2=4", "ngram 2=3"), r"\3-grams: is missing", 17),
    "cut": (VALID[: VALID.index("-0.1\ta é")], "the file ends before its 2 3-grams do", 20),
    "no end": (VALID.replace("\\end\\\n", ""), r"\end\ is missing", 22),
    "more": (VALID + "x\n", r"text follows after \end\ ".strip(), 24),
    "fields": (VALID.replace("a é\u00a0b\t-0.25", "a\t-0.25 x y"), "5 fields cannot be a 2-gram", 15),
    "one field": (VALID.replace("-0.4\t<s> a\t-0.1", "-0.4"), "1 fields cannot be a 2-gram", 14),
    "no number": (VALID.replace("-0.5\t", "-0,5\t"), "b'-0,5' is not a finite number", 15),
    "underscore": (VALID.replace("-0.5\t", "-0_5\t"), "b'-0_5' is not a finite number", 15),
    "nan": (VALID.replace("-0.25", "nan"), "b'nan' is not a finite number", 15),
    "infinite": (VALID.replace("-0.5\t", "-inf\t"), "b'-inf' is not a finite number", 15),
    "positive": (VALID.replace("-0.45", "0.45"), "a log probability is above 0", 16),
    "word twice": (VALID.replace("-0.6\ta", "-0.6\té\u00a0b"), "this word is there twice", 11),
    "n-gram twice": (VALID.replace("é\u00a0b a", "a é\u00a0b"), "this n-gram is there twice", 17),
    "unknown word": (VALID.replace("<s> a\t", "<s> x\t"), "a word is not among the 1-grams", 14),
    "no <unk>": (VALID.replace("<unk>", "<what>"), "<unk> is not among the 1-grams", 11),
    "no </s>": (VALID.replace("</s>", "</t>"), "</s> is not among the 1-grams", 11),
    "no context": (VALID.replace("-0.4\t<s> a", "-0.4\ta a"), "its context is not among the 2-grams", 20),
    "no suffix": (
        VALID.replace("-0.2\t<s> a é\u00a0b", "-0.2\t<s> a a"),
        "without its first word is not among the 2-grams",
        20,
    ),
    "NUL": (VALID.replace("-0.6\ta", "-0.6\ta\0"), "a NUL byte", 10),
    "one endless line": ("\\data\\\nngram 1=5\n" + "x" * 3_000_000, "a line is longer than 1048576 bytes", 3),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_not_sound_is_refused(tmp_path: Path, case: str) -> None:
    text, reason, line = HOSTILE[case]
    path = saved(tmp_path / "m.arpa", text)
    with pytest.raises(MoekitError) as error:
        load_arpa(path)
    message = str(error.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert reason in message


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoekitError, match="cannot be read"):
        load_arpa(tmp_path / "missing.arpa")
    with pytest.raises(MoekitError, match="cannot be read"):
        load_arpa(tmp_path)
    whole = gzip.compress(VALID.encode())
    for damaged in (whole[:-9], whole[:20] + bytes(20) + whole[40:], b"\x1f\x8bno"):
        with pytest.raises(MoekitError, match="damaged gzip"):
            load_arpa(saved(tmp_path / "m.arpa", damaged))


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_mutations_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(VALID.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 8))
        end = len(content) if data.draw(st.booleans()) and length == 8 else at + length
        content[at:end] = data.draw(
            st.binary(max_size=6)
            | st.sampled_from([b"\n", b"\t", b" ", b"\\", b"-", b"9", b"e", b"\0", b"\v", b"\xff", b"\\end\\", b"nan"])
        )
    path = saved(tmp_path_factory.getbasetemp() / "mutated.arpa", bytes(content))
    # whatever else it raises fails the test
    with contextlib.suppress(MoekitError):
        assert torch.isfinite(scores(load_arpa(path))).all()


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NGram.train_words(["a b c"], order=3)
    path = tmp_path / "m.arpa"
    path.write_text("old")
    texts = iter([number_texts] * 3)
    monkeypatch.setattr("moekit.models.ngram.lines.number_texts", lambda numbers: next(texts)(numbers))
    with pytest.raises((StopIteration, RuntimeError)):
        model.save(path)
    assert os.listdir(tmp_path) == ["m.arpa"]
    assert path.read_text() == "old"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"end in \.arpa"):
        NGram.train_words(["a"]).save(tmp_path / "m.bin")
    for words in (["a b"], [""], ["a", "a"], ["<s>"]):
        model = NGram.train([np.array([0])], words, order=2)
        with pytest.raises(MoekitError, match="cannot be written"):
            model.save(tmp_path / "m.arpa")
    assert not os.listdir(tmp_path)


def test_scores_are_in_nats(tmp_path: Path) -> None:
    model = load_arpa(saved(tmp_path / "m.arpa", VALID))
    row = np.array([[model.vocabulary.begin, 0, 1, model.vocabulary.end]])
    assert model.log_prob(row)[0].tolist() == pytest.approx([p * math.log(10) for p in (-0.4, -0.2, -0.1)])
