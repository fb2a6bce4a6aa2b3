"""Ids of special tokens that a configuration lacks, from the tokenizer's files beside it."""

import json
from pathlib import Path
from typing import Any

from moekit.config import Config, EncoderConfig

# Of the tokenizer's files, and of ours.
_NAMES = {
    "pad_token": "pad_token",
    "cls_token": "start_token",
    "sep_token": "separator_token",
    "mask_token": "mask_token",
}


def with_special_tokens(config: Config, folder: Path) -> Config:
    """Add the ids of [PAD], [CLS], [SEP] and [MASK] to an encoder's configuration where its tokenizer has them.

    Published config.json of BERT have none. Other configurations, and ids that are given, stay as they are.
    """
    if not isinstance(config, EncoderConfig):
        return config
    words = read_object(folder / "special_tokens_map.json") | read_object(folder / "tokenizer_config.json")
    ids = {
        token.get("content"): token.get("id")
        for token in read_object(folder / "tokenizer.json").get("added_tokens", [])
    }
    found = {}
    for theirs, ours in _NAMES.items():
        word = words.get(theirs, f"[{theirs.removesuffix('_token').upper()}]")
        id_ = ids.get(word.get("content") if isinstance(word, dict) else word)
        if getattr(config, ours) is None and isinstance(id_, int) and 0 <= id_ < config.vocab_size:
            found[ours] = id_
    return config.model_copy(update=found)


def read_object(file: Path) -> dict[str, Any]:
    """Read the object in a file of JSON.

    It is empty where there is none: what is missing here is told where it is needed.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
