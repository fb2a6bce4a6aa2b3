"""What stands beside the weights of a folder and goes with them: tokenizers, chat templates, what generation takes."""

import shutil
from pathlib import Path

PATTERNS = (
    *("tokenizer*.json", "tokenizer*.txt", "tekken.json", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "tokenizer.model.v[0-9]", "tokenizer.model.v[0-9]m[0-9]", "*.tiktoken", "*.spm"),
    *("vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "bpe.codes"),
    *("chat_template.json", "*.jinja", "additional_chat_templates/*.jinja"),
    "generation_config.json",
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md"),
)
"""The names of such files, by which a hub id is downloaded, too; none of them is code or a pickle."""


def companions(folder: Path) -> list[Path]:
    """Find the companions of a model, as files of its folder."""
    return sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()})


def copy_companions(origin: Path, target: Path) -> None:
    """Copy the companions in `origin`, as they are; a tokenizer that is loaded and saved comes out another."""
    for file in companions(origin):
        copy = target / file.relative_to(origin)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
