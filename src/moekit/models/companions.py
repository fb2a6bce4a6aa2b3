"""What stands beside the weights of a folder and goes with them: tokenizers, chat templates, what generation takes."""

import shutil
from pathlib import Path

PATTERNS = (
    "tokenizer*",  # tokenizer.json, tokenizer_config.json, tokenizer.model, tokenizer.model.v3, …
    "*.model",  # sentencepiece.bpe.model, spiece.model, …
    "*.tiktoken",
    "*.spm",
    "tekken.json",
    "vocab*",
    "merges.txt",
    "bpe.codes",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*.jinja",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
"""The names of such files; a hub id is downloaded by them, too."""


def companions(folder: Path) -> list[Path]:
    """Find the companions of a model, as files of its folder."""
    return sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()})


def copy_companions(origin: Path, target: Path) -> None:
    """Copy the companions in `origin`, as they are; a tokenizer that is loaded and saved comes out another."""
    for file in companions(origin):
        copy = target / file.relative_to(origin)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
