"""What lies beside a tokenizer.json: special tokens by name, further tokens, chat templates, and where answers end.

Read as transformers does (`PreTrainedTokenizerBase.from_pretrained` of release 5; 4.57 reads the same files).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekit.core.errors import MoekitError

if TYPE_CHECKING:
    from tokenizers import AddedToken

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What special tokens are called, in settings and in chat templates."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class TokenizerSettings:
    """What a folder's settings say of its tokenizer.

    Attributes:
        named: the texts of `bos_token` and others of NAMES, and of tokens with names of the model's own.
        added: the tokens that are to be added where tokenizer.json lacks them, in their order.
    """

    named: Mapping[str, str]
    added: "tuple[AddedToken, ...]"


def read_tokenizer_settings(folder: Path) -> TokenizerSettings:
    """Read tokenizer_config.json; where that lists no tokens, special_tokens_map.json and added_tokens.json, too.

    Raises:
        MoekitError: where a file is not what it should be.
    """
    file = folder / "tokenizer_config.json"
    settings = read_object(file)
    listed = settings.get("added_tokens_decoder")
    if listed is None:
        settings |= read_object(folder / "special_tokens_map.json")
        numbered = {word: id_ for word, id_ in read_object(folder / "added_tokens.json").items() if type(id_) is int}
        tokens = [(id_, {"content": word}) for word, id_ in numbered.items()]
    elif isinstance(listed, dict) and all(id_.isdecimal() and _text(token) for id_, token in listed.items()):
        tokens = [(int(id_), token if isinstance(token, dict) else {"content": token}) for id_, token in listed.items()]
    else:
        raise MoekitError(f"{file}: added_tokens_decoder must hold tokens by their ids.")
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    by_name = {name: settings.get(name) for name in NAMES}
    by_name |= {name: word for name, word in settings.items() if name.endswith("_token") and isinstance(word, str)}
    by_name |= extra if isinstance(extra, dict) else {}
    special = [*by_name.values(), *(extra if isinstance(extra, list) else [])]
    words = {word for token in special if (word := _text(token))}
    found = {token["content"]: _added(token, special=token["content"] in words) for _, token in sorted(tokens, key=_id)}
    for token in special:
        if word := _text(token):
            found.setdefault(word, _added(token if isinstance(token, dict) else {"content": word}, special=True))
    named = {name: word for name, token in by_name.items() if (word := _text(token))}
    return TokenizerSettings(named, tuple(found.values()))


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Read a folder's templates for conversations by their names; the usual one is `default`.

    They stand in chat_template.jinja and additional_chat_templates/, else in tokenizer_config.json, one or a list of
    them, else in the chat_template.json of a processor.

    Raises:
        MoekitError: where a file is not what it should be.
    """
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: _read_text(file) for name, file in files.items() if file.is_file()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not found:
            found = _templates(read_object(folder / name).get("chat_template"), folder / name)
    return found


def read_object(file: Path) -> dict[str, Any]:
    """Read the object in a file of JSON; it is empty where there is no such file.

    Raises:
        MoekitError: where the file cannot be read or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        values = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise MoekitError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise MoekitError(f"{file} must hold an object of settings.")
    return values


def ids_of(value: Any) -> list[int]:
    """Read ids from a setting that holds one id, a list of them, or neither."""
    return [id_ for id_ in (value if isinstance(value, list) else [value]) if type(id_) is int and id_ >= 0]


def _templates(value: Any, file: Path) -> dict[str, str]:
    if value is None:
        return {}
    entries: Iterable[Any] = value if isinstance(value, list) else [{"name": "default", "template": value}]
    found = {}
    for entry in entries:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise MoekitError(f"{file}: chat_template must be text, or a list of texts with names.")
        found[name] = text
    return found


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MoekitError(f"Cannot read {file}: {error}.") from error


def _text(token: Any) -> str | None:
    """Find the text of a token, which stands for itself or in an object with flags."""
    word = token.get("content") if isinstance(token, dict) else token
    return word if isinstance(word, str) and word else None


def _added(token: Mapping[str, Any], *, special: bool) -> "AddedToken":
    from tokenizers import AddedToken

    special = bool(token.get("special", special)) or special
    flags = {flag: bool(token.get(flag, flag == "normalized" and not special)) for flag in _FLAGS}
    return AddedToken(token["content"], special=special, **flags)


def _id(numbered: tuple[int, Any]) -> int:
    return numbered[0]
