"""What lies beside a tokenizer.json, read as transformers reads it: further tokens, names, templates, ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.tokenizer_kinds import END, START, save
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from moekit.core.errors import MoekitError
from moekit.data.model_tokenizer import tokenizer_of
from moekit.data.tokenizer_files import read_chat_templates, read_tokenizer_settings
from moekit.data.tokenizers import FileTokenizer

FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
WORDS = ("<|turn|>", "<|call|>", "<note>", "own")
TEXT = "a <|turn|>b<|call|> own known <note> Own<note>  <|turn|> <|start|>owner"


def numbered(size: int, **flags: bool) -> dict[str, Any]:
    return {str(size + i): {"content": word} | FLAGS | flags for i, word in enumerate(WORDS[:3])}


# Settings, and what else lies beside them, by how many tokens the tokenizer.json has.
FORMS: dict[str, Any] = {
    "numbered": lambda size: ({"added_tokens_decoder": numbered(size)}, {}),
    "numbered, out of order": lambda size: ({"added_tokens_decoder": dict(reversed(numbered(size).items()))}, {}),
    "numbered, not special": lambda size: ({"added_tokens_decoder": numbered(size, special=False)}, {}),
    "numbered, stripping": lambda size: ({"added_tokens_decoder": numbered(size, lstrip=True, rstrip=True)}, {}),
    "numbered, whole words": lambda size: ({"added_tokens_decoder": numbered(size, single_word=True)}, {}),
    "numbered and named": lambda size: (
        {"added_tokens_decoder": numbered(size, special=False), "eos_token": "<|turn|>", "pad_token": "<note>"},
        {},
    ),
    "further, a list": lambda size: ({"extra_special_tokens": list(WORDS)}, {}),
    "further, by names": lambda size: ({"extra_special_tokens": {"turn_token": "<|turn|>", "own_token": "own"}}, {}),
    "further, the older name": lambda size: ({"additional_special_tokens": list(WORDS)}, {}),
    "named alone": lambda size: ({"eos_token": "<|turn|>", "pad_token": "<note>", "cls_token": "own"}, {}),
    "a name of the model's own": lambda size: ({"image_token": "<|turn|>"}, {}),
    "named with flags": lambda size: (
        {"mask_token": {"__type": "AddedToken", "content": "<note>"} | FLAGS | {"lstrip": True}},
        {},
    ),
    "older map": lambda size: (
        {},
        {"special_tokens_map.json": {"eos_token": "<|turn|>", "pad_token": {"content": "<note>"} | FLAGS}},
    ),
    "older map, of several": lambda size: ({}, {"special_tokens_map.json": {"additional_special_tokens": list(WORDS)}}),
    "older list": lambda size: ({}, {"added_tokens.json": {"<|call|>": size + 1, "<|turn|>": size}}),
    "older list and map": lambda size: (
        {},
        {
            "added_tokens.json": {"<|turn|>": size, "own": size + 1},
            "special_tokens_map.json": {"eos_token": "<|turn|>"},
        },
    ),
    "a word of the vocabulary": lambda size: ({"eos_token": "a", "extra_special_tokens": ["b"]}, {}),
    "nothing": lambda size: ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["cut as qwen2", "added, one in another"])
def test_tokens_are_those_of_transformers(form: str, kind: str, tmp_path: Path) -> None:
    size = Tokenizer.from_file(str(save(kind, tmp_path) / "tokenizer.json")).get_vocab_size()
    settings, files = FORMS[form](size)
    save(kind, tmp_path, **settings)
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = FileTokenizer(tmp_path)
    assert ours.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False)
    assert ours.vocab_size == len(theirs)
    assert dict(ours.special_texts) == theirs.special_tokens_map
    named = {theirs.convert_tokens_to_ids(word) for word in theirs.all_special_tokens}
    assert named <= set(ours.special_tokens.values())
    assert theirs.eos_token_id in ours.end_tokens


def test_tokens_beyond_the_model_s_are_not_added(tmp_path: Path) -> None:
    size = Tokenizer.from_file(str(save("added", tmp_path) / "tokenizer.json")).get_vocab_size()
    save("added", tmp_path, pad_token="<pad>")
    assert FileTokenizer(tmp_path).vocab_size == size + 1
    assert tokenizer_of(tmp_path, size).vocab_size == size
    assert tokenizer_of(tmp_path, size + 1).vocab_size == size + 1


@pytest.mark.parametrize(
    ("config", "named", "expected"),
    [
        ({"bos_token_id": 7, "eos_token_id": 8}, {}, 7),
        ({"eos_token_id": 8}, {"bos_token": START}, 0),
        ({"eos_token_id": [8, 9]}, {}, 8),
        ({}, {"eos_token": END}, 1),
        ({}, {}, None),
    ],
)
def test_the_start_of_a_text(config: Any, named: Any, expected: int | None, tmp_path: Path) -> None:
    save("added", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert FileTokenizer(tmp_path).start == expected


def test_special_tokens_that_a_text_writes_out_are_text_where_it_is_plain(tmp_path: Path) -> None:
    ours = FileTokenizer(save("added", tmp_path))
    assert 0 in ours.encode(f"a {START} b")
    assert 0 not in ours.encode_plain(f"a {START} b")
    assert ours.decode(ours.encode_plain(f"a {START} b")) == f"a {START} b"


def test_templates_lie_in_many_places(tmp_path: Path) -> None:
    listed = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    places: dict[str, tuple[str, dict[str, str]]] = {
        "chat_template.json": (json.dumps({"chat_template": "one"}), {"default": "one"}),
        "tokenizer_config.json": (json.dumps({"chat_template": listed}), {"tool_use": "two", "default": "three"}),
        "additional_chat_templates/rag.jinja": ("four", {"rag": "four"}),
        "chat_template.jinja": ("five", {"default": "five", "rag": "four"}),
    }
    assert read_chat_templates(tmp_path) == {}
    for name, (text, expected) in places.items():  # each counts for more than those before
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        assert read_chat_templates(tmp_path) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"added_tokens_decoder": []}, "added_tokens_decoder must hold tokens by their ids"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder must hold tokens by their ids"),
        ({"added_tokens_decoder": {"1": {}}}, "added_tokens_decoder must hold tokens by their ids"),
    ],
)
def test_settings_that_are_broken(settings: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(MoekitError, match=said):
        read_tokenizer_settings(tmp_path)
