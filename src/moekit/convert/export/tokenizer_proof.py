"""The proof that a GGUF file has the tokenizer of the folder it was made of.

Both encode and decode texts of many kinds. moekit's reader has to give the same; what other programs, which read GGUF's
own keys alone, would take for something else is told with an example.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moekit.checkpoint.gguf import Metadata
from moekit.core.errors import MoekitError
from moekit.data.gguf_tokenizer import GGUFTokenizer
from moekit.data.gguf_vocabulary import unsaid
from moekit.data.probe_texts import probe_texts
from moekit.data.tokenizers import FileTokenizer
from moekit.inference.chat_template import ChatTemplate

_CHAT: list[dict[str, str]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Go on."},
]


def prove_tokenizer(source: FileTokenizer, metadata: Metadata) -> list[str]:
    """Compare a folder's tokenizer with the one in the metadata of the file that was made of it.

    Returns:
        What other programs than moekit take for something else, a sentence each.

    Raises:
        MoekitError: where moekit itself would: with a short text that differs.
    """
    texts = probe_texts(source)
    written = GGUFTokenizer(metadata)
    for what, ours, theirs in _views(written, source):
        if (text := _difference(texts, ours, theirs)) is not None:
            raise MoekitError(
                f"The GGUF file would not have the tokenizer of {source.file}: {text!r} {what}; "
                "this tokenizer cannot be written."
            )
    if (written.start, written.end_tokens) != (source.start, source.end_tokens):
        raise MoekitError(f"The GGUF file would not have the start and the ends of {source.file}.")
    return [*_said_elsewhere(source, metadata, texts)]


_View = tuple[str, Callable[[str], Any], Callable[[str], Any]]


def _views(written: GGUFTokenizer, source: FileTokenizer) -> Iterator[_View]:
    """Give what both do with a text: what it is called, and the two."""
    yield "becomes other tokens", written.encode, source.encode
    yield "becomes another prompt", written.encode_prompt, source.encode_prompt
    yield "becomes other tokens where nothing is special", written.encode_plain, source.encode_plain
    yield (
        "comes back from its tokens as another text",
        lambda text: written.decode(source.encode(text)),
        lambda text: source.decode(source.encode(text)),
    )


def _difference(texts: Sequence[str], ours: Callable[[str], Any], theirs: Callable[[str], Any]) -> str | None:
    """Find the first text that the two do not give the same for."""
    return next((text for text in texts if ours(text) != theirs(text)), None)


def _said_elsewhere(source: FileTokenizer, metadata: Metadata, texts: Sequence[str]) -> Iterator[str]:
    usual = GGUFTokenizer(metadata, usual_keys=True)
    text = _difference(texts, usual.encode, source.encode)
    missing = ", ".join(unsaid(source, metadata.get_as(str, "tokenizer.ggml.pre", "default")))
    if text is not None:
        yield (
            f"Other programs than moekit take some texts for other tokens, such as {text!r}: GGUF has no word for "
            f"{missing or 'how this tokenizer joins letters'}."
        )
    elif usual.encode_prompt("a") != source.encode_prompt("a"):
        yield (
            "Other programs than moekit put other special tokens around a prompt: "
            f"{usual.encode_prompt('a')} for 'a', not {source.encode_prompt('a')}."
        )
    words = source.described()["added_tokens"]
    by_id = {token["id"]: token["content"] for token in words}
    if lost := sorted(source.end_tokens - usual.end_tokens):
        named = ", ".join(repr(by_id.get(id_, id_)) for id_ in lost)
        yield f"Other programs than moekit do not end an answer at {named}: GGUF has room for three end tokens."
    if not source.end_tokens:
        yield f"{source.file.parent} names no token that ends an answer."
    yield from _rendered_elsewhere(usual, source.special_texts)


def _rendered_elsewhere(usual: GGUFTokenizer, named: Mapping[str, str]) -> Iterator[str]:
    """Tell of a chat template that says something else with the variables that other programs give it."""
    template = usual.chat_template
    if template is None or dict(usual.special_texts) == dict(named):
        return
    rendered = []
    for variables in (usual.special_texts, named):
        try:
            rendered.append(ChatTemplate(template, variables).render(_CHAT))
        except MoekitError as error:
            rendered.append(str(error))
    if rendered[0] != rendered[1]:
        differing = [name for name in named if usual.special_texts.get(name) != named[name]]
        yield (
            "Other programs than moekit render the chat template otherwise: they do not know "
            f"{', '.join(differing) or 'which special tokens it has none of'}."
        )
