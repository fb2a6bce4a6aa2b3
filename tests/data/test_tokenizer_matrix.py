"""Every kind of tokenizer through a GGUF file: the folder's ids come back, and what other programs differ in is told.

`MOEKIT_TEXTS=10000 pytest tests/data/test_tokenizer_matrix.py` tries as many texts of each kind.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.tokenizer_kinds import KINDS, START, TURN, VOCAB, random_texts, save
from tokenizers import Tokenizer

from moekit.checkpoint.gguf import GGUFFile, write_gguf
from moekit.checkpoint.gguf.metadata import Metadata
from moekit.convert.export.tokenizer_proof import prove_tokenizer
from moekit.core.errors import MoekitError
from moekit.data.gguf_exact_tokenizer import KEY
from moekit.data.gguf_tokenizer import GGUFTokenizer
from moekit.data.gguf_vocabulary import chat_template_metadata, tokenizer_metadata
from moekit.data.tokenizers import FileTokenizer

TEXTS = int(os.environ.get("MOEKIT_TEXTS", "40"))
# What has to stand in the note for kinds that GGUF has no word for.
TOLD = {
    "a space before a text": "a space before a text",
    **{f"normalised by {name}": name for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip")},
    **{f"normalised by {name}": name for name in ("Nmt", "Replace", "Prepend")},
    "pieces, always": "'always'",
    "pieces, first": "'first'",
    "pieces, NFKC": "NFKC",
    "pieces, cut at digits": "Digits",
    "unigram, first": "'first'",
    "unigram, NFKC": "NFKC",
    "unigram, bytes": "bytes in place of unknown letters",
    **{f"added, {flag}": f"{flag} of '<own>'" for flag in ("lstrip", "rstrip", "single_word")},
    "added, special, lstrip": "lstrip of '<mask>'",
    "added, pieces": "rstrip of '<b>'",
    "two at the start": "other special tokens around a prompt",
}


def metadata_of(source: FileTokenizer, folder: Path) -> Metadata:
    file = folder / "tokenizer.gguf"
    write_gguf(file, "llama", tokenizer_metadata(source, VOCAB) | chat_template_metadata(folder), [])
    return GGUFFile(file).metadata


@pytest.mark.parametrize("kind", KINDS)
def test_ids_come_back_or_the_note_names_what_differs(kind: str, tmp_path: Path) -> None:
    folder = save(kind, tmp_path)
    source, rust = FileTokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    metadata = metadata_of(source, folder)
    notes = prove_tokenizer(source, metadata)
    assert TOLD.get(kind, "") in " ".join(notes)
    ours, elsewhere = GGUFTokenizer(metadata), GGUFTokenizer(metadata, usual_keys=True)
    told = any("take some texts for other tokens" in note for note in notes)
    for text in random_texts(TEXTS, rust):
        ids = rust.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, text
        assert ours.encode_prompt(text) == rust.encode(text).ids, text
        assert ours.encode_plain(text) == source.encode_plain(text), text
        assert ours.decode(ids) == rust.decode(ids), text
        assert told or elsewhere.encode(text) == ids, text


def test_a_file_that_lost_what_is_beside_ggufs_keys_is_found(tmp_path: Path) -> None:
    folder = save("normalised by NFC", tmp_path)
    source = FileTokenizer(folder)
    keys = tokenizer_metadata(source, VOCAB)
    del keys[KEY]
    file = tmp_path / "less.gguf"
    write_gguf(file, "llama", keys, [])
    with pytest.raises(MoekitError, match="becomes other tokens; this tokenizer cannot"):
        prove_tokenizer(source, GGUFFile(file).metadata)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "is not what moekit writes"),
        ("[]", "is not what moekit writes"),
        ('{"tokenizer": 1, "outside": [], "end_tokens": [], "special_texts": {}}', "is not what moekit writes"),
        ('{"tokenizer": {}, "outside": [], "end_tokens": ["x"], "special_texts": {}}', "is not what moekit writes"),
        ('{"tokenizer": {}, "outside": [], "start": "x", "end_tokens": [], "special_texts": {}}', "is not what moekit"),
        ('{"tokenizer": {}, "outside": [], "end_tokens": [], "special_texts": {"a": 1}}', "is not what moekit writes"),
        ('{"tokenizer": {}, "outside": [], "end_tokens": [], "special_texts": {}}', "does not fit the tokens"),
    ],
)
def test_a_spoilt_key_is_one_sentence(value: str, message: str, tmp_path: Path) -> None:
    keys = tokenizer_metadata(FileTokenizer(save("added", tmp_path)), VOCAB)
    file = tmp_path / "spoilt.gguf"
    write_gguf(file, "llama", keys | {KEY: value}, [])
    with pytest.raises(MoekitError, match=message) as error:
        GGUFTokenizer(GGUFFile(file).metadata)
    assert "\n" not in str(error.value)


def added_to_config(tokens: int, name: str = "<|turn-{}|>") -> Callable[[int], dict[str, object]]:
    """Further tokens that stand in tokenizer_config.json alone."""
    return lambda size: {
        "added_tokens_decoder": {str(size + i): {"content": name.format(i), "special": True} for i in range(tokens)}
    }


@pytest.mark.parametrize("ends", [1, 2, 3, 5])
def test_every_end_comes_back_and_those_without_room_are_told(ends: int, tmp_path: Path) -> None:
    folder = save("cut as qwen2", tmp_path)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    save("cut as qwen2", tmp_path, **added_to_config(ends)(size))
    wanted = [*range(size, size + ends)]
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {wanted}}}')
    source = FileTokenizer(folder)
    assert source.end_tokens == {*wanted, 1}
    metadata = metadata_of(source, folder)
    assert GGUFTokenizer(metadata).end_tokens == source.end_tokens
    notes = [note for note in prove_tokenizer(source, metadata) if "do not end an answer" in note]
    elsewhere = GGUFTokenizer(metadata, usual_keys=True).end_tokens
    assert elsewhere == {1, *wanted[:2]}
    assert bool(notes) == (ends > 2)


def test_the_start_that_the_tokenizer_adds_is_written_where_no_setting_names_it(tmp_path: Path) -> None:
    folder = save("start", tmp_path)
    (folder / "config.json").write_text(f'{{"vocab_size": {VOCAB}}}')
    (folder / "tokenizer_config.json").write_text("{}")
    source = FileTokenizer(folder)
    metadata = metadata_of(source, folder)
    assert metadata["tokenizer.ggml.bos_token_id"] == 0
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    for tokenizer in (GGUFTokenizer(metadata), GGUFTokenizer(metadata, usual_keys=True)):
        assert tokenizer.encode_prompt("x") == source.encode_prompt("x")
    assert any("names no token that ends an answer" in note for note in prove_tokenizer(source, metadata))


def test_a_template_that_other_programs_render_otherwise_is_told(tmp_path: Path) -> None:
    template = "{{ mask_token }}{{ cls_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    folder = save("added", tmp_path, cls_token=TURN, chat_template=template)
    source = FileTokenizer(folder)
    metadata = metadata_of(source, folder)
    ours = GGUFTokenizer(metadata)
    assert ours.chat_template == template
    assert (
        ours.special_texts == source.special_texts == {"bos_token": START, "eos_token": "<|stop|>", "cls_token": TURN}
    )
    assert any(
        "render the chat template otherwise: they do not know cls_token" in note
        for note in prove_tokenizer(source, metadata)
    )
