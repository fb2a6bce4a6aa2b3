"""Chat templates: from a conversation to the text, and the ids, that a model was trained to answer."""

import json
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moekit.core.errors import MoekitError, UsageError
from moekit.data.tokenizer_files import read_chat_templates, read_tokenizer_settings
from moekit.data.tokenizers import Tokenizer
from moekit.inference.prompt_tokens import PromptTokenizer

Message = Mapping[str, Any]
"""`role` (system, user, assistant, …) and `content`, as in OpenAI's API; further keys are the template's to use."""

_SECONDS = 5.0
# What every template of conversations takes.
_PROBE = {"messages": [{"role": "user", "content": "a"}]}
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
# Supplementary Private Use Area-B: whoever writes such a character is left it, and another one marks.
_MARKS = range(0x100000, 0x10FFFE)


class TemplateRefusal(UsageError):
    """A chat template fails on these messages, and may not on others: what it says is the caller's to mend."""


class ChatTemplate:
    """A Jinja template, rendered in a process that may use little memory and a few seconds.

    Args:
        source: the template.
        special_tokens: `bos_token` and others by the names that templates know them by.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self.special_tokens = source, special_tokens
        self._worker = _Worker()
        weakref.finalize(self, self._worker.end)

    def start(self) -> None:
        """Start the process already, while something else is done."""
        self._worker.start()

    def names(self, variable: str) -> bool:
        """Tell whether the template names a variable."""
        return re.search(rf"(?<!\w){re.escape(variable)}(?!\w)", self.source) is not None

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> str:
        """Render the text up to where the answer begins.

        Args:
            messages: the conversation.
            variables: further variables of the template, such as `enable_thinking`.

        Raises:
            TemplateRefusal: where the template fails on these messages and variables, with what it says.
            MoekitError: where it is no template, takes too long or too much memory.
        """
        if reserved := sorted(_RESERVED & (variables or {}).keys()):
            raise TemplateRefusal(f"{reserved[0]} is no variable of a chat template that can be set.")
        # Templates test whether a key is there, and would write "None".
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        told: dict[str, Any] = {**self.special_tokens, "tools": None, "documents": None, "add_generation_prompt": True}
        match self._ask({**told, **(variables or {}), "messages": given}):
            case {"text": text}:
                return str(text)
            case {"refusal": reason}:
                raise TemplateRefusal(f"The chat template refuses the conversation: {reason.rstrip('.')}.")
            case {"failure": reason} if "text" in self._ask(told | _PROBE):
                raise TemplateRefusal(f"The chat template fails on this conversation: {reason.rstrip('.')}.")
            case {"failure": reason} | {"error": reason}:
                raise MoekitError(f"The chat template fails: {reason.rstrip('.')}.")
            case answer:
                raise AssertionError(f"the worker answers {answer}")

    def _ask(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return self._worker.ask({"source": self.source, "variables": variables})

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Render the text and encode it.

        A special token that a message writes out stays text, if the tokenizer can keep the two apart: such words are
        each marked by one character before the template sees them, and encoded by themselves. What the system says
        stands before the first message of the user where the template refuses a message of the system. It raises what
        `render` raises, and UsageError for a message that is no valid Unicode.
        """
        try:
            return self._encode(messages, tokenizer, variables or {})
        except MoekitError:
            if [message.get("role") for message in messages[:2]] != ["system", "user"]:
                raise
        system, user, *others = messages
        folded = {**user, "content": f"{system['content']}\n\n{user['content']}"}
        return self._encode([folded, *others], tokenizer, variables or {})

    def _encode(self, messages: Sequence[Message], tokenizer: Tokenizer, variables: Mapping[str, Any]) -> list[int]:
        said = "\n".join(_texts([messages, variables]))
        try:
            said.encode()
        except UnicodeEncodeError as error:
            raise TemplateRefusal(f"The conversation is not valid Unicode: {error.reason}.") from error
        special = tokenizer.special_tokens if isinstance(tokenizer, PromptTokenizer) else {}
        marks = _marks([word for word in special if word in said], said + self.source)
        if not marks:
            return tokenizer.encode(self.render(messages, variables))
        text = self.render([_marked(message, marks) for message in messages], _marked(variables, marks))
        words = {mark: word for word, mark in marks.items()}
        first, *others = re.split(f"([{''.join(words)}])", text)
        ids = tokenizer.encode(first)
        for piece in filter(None, others):
            if piece in words:
                ids += _continued(tokenizer.encode_plain, words[piece])
            else:
                ids += _continued(tokenizer.encode, piece)
        return ids


def folder_template(folder: Path) -> ChatTemplate | None:
    """Read the usual template of a Hugging Face folder; None where there is no template of that name.

    Raises:
        MoekitError: where a file is not what it should be.
    """
    source = read_chat_templates(folder).get("default")
    return None if source is None else ChatTemplate(source, read_tokenizer_settings(folder).named)


class _Worker:
    """The process that renders, started when it is needed and ended with the template."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self) -> "subprocess.Popen[str]":
        """Start the process if none is running, and give it."""
        if self._process is not None and self._process.poll() is not None:
            self.end()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("chat_template_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C stops an answer, not this
            )
        return self._process

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the answer to a request; it is an error where none comes in time."""
        with self._lock:
            process = self.start()
            assert process.stdin is not None
            assert process.stdout is not None
            alarm = threading.Timer(_SECONDS, process.kill)
            alarm.start()
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:
                self.end()  # whoever asks next must not get the answer to this
                raise
            finally:
                alarm.cancel()
            if not line:
                self.end()
                return {"error": "it runs too long, or takes too much memory"}
            answer: dict[str, Any] = json.loads(line)
            return answer

    def end(self) -> None:
        """End the process, if one is running."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _texts(value: Any) -> Iterator[str]:
    """Yield every text that a value holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _marks(words: Sequence[str], text: str) -> dict[str, str]:
    """Choose for each word a character that the text does not hold; longer words come first."""
    unused = (mark for code in _MARKS if (mark := chr(code)) not in text)
    return dict(zip(sorted(words, key=len, reverse=True), unused, strict=False))


def _marked(value: Any, marks: Mapping[str, str]) -> Any:
    """Replace each of the words in texts by its mark."""
    if isinstance(value, Mapping):
        return {key: _marked(inner, marks) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner, marks) for inner in value]
    if not isinstance(value, str):
        return value
    return re.sub("|".join(map(re.escape, marks)), lambda found: marks[found[0]], value)


def _continued(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Encode a text that stands within another: at the beginning, SentencePiece's tokenizers add a space."""
    line, ids = encode("\n"), encode("\n" + text)
    return ids[len(line) :] if ids[: len(line)] == line else encode(text)
