"""The proof that a written folder takes text for what the model that it was made of takes it for.

Both are read as moekit reads models: tokens of probe texts, where texts start and answers end, and the chat template.
"""

import filecmp
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from moekit.core.errors import MoekitError
from moekit.data.gguf_tokenizer import GGUFTokenizer
from moekit.data.model_tokenizer import tokenizer_of
from moekit.data.probe_texts import probe_texts
from moekit.data.tokenizers import FileTokenizer
from moekit.inference.chat_template import folder_template
from moekit.inference.load_gguf import gguf_template
from moekit.models.companions import companions

_CONVERSATION = [
    {"role": "user", "content": " Why? "},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Go on: 12\n\né"},
]
Said = Iterator[tuple[str, object]]


def check_text(source: Path, result: Path, vocab_size: int) -> None:
    """Raise MoekitError where a companion of the source is not in the result as it is, or text is taken otherwise.

    A tokenizer or a template that cannot be read has to fail in both folders with the same words.
    """
    for file in companions(source):
        copy = result / file.relative_to(source)
        if not copy.is_file() or not filecmp.cmp(file, copy, shallow=False):
            raise MoekitError(f"{file.name} in the result is not what it is in {source}; the copy is damaged.")
    reads: list[Callable[[Path], Said]] = [
        partial(_tokens, vocab_size=vocab_size),
        partial(_template, vocab_size=vocab_size),
    ]
    for read in reads:
        theirs, ours = (_outcome(read, folder) for folder in (source, result))
        for what in {**theirs, **ours}:
            if (found := ours.get(what)) != theirs.get(what):
                raise MoekitError(f"{what} is {found!r} in the result, and {theirs.get(what)!r} in {source}.")


def _outcome(read: Callable[[Path], Said], folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    try:
        found.update(read(folder))
    except MoekitError as error:
        found["the error"] = str(error).replace(str(folder), "")
    return found


def _tokens(folder: Path, vocab_size: int) -> Said:
    tokenizer = tokenizer_of(folder, vocab_size)
    if isinstance(tokenizer, FileTokenizer | GGUFTokenizer):
        yield "the token before a text", tokenizer.start
        yield "the list of tokens that end an answer", sorted(tokenizer.end_tokens)
        for text in probe_texts(tokenizer):
            yield f"the list of tokens of {text!r}", tokenizer.encode_prompt(text)


def _template(folder: Path, vocab_size: int) -> Said:
    is_folder = folder.is_dir()
    template = folder_template(folder) if is_folder else gguf_template(tokenizer_of(folder, vocab_size))
    if template is not None:
        yield "the chat template", (template.source, dict(template.special_tokens))
        yield "what it makes of a conversation", template.render(_CONVERSATION)
