"""Chat templates: from a conversation to the text, and the ids, that a model was trained to answer."""

import json
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moekit.core.errors import MoekitError
from moekit.data.tokenizer_files import read_chat_templates, read_tokenizer_settings
from moekit.data.tokenizers import Tokenizer
from moekit.inference.prompt_tokens import PromptTokenizer

Message = Mapping[str, Any]
"""`role` (system, user, assistant, …) and `content`, as in OpenAI's API; further keys are the template's to use."""

_SECONDS = 5.0
# Private-use characters: which of the special tokens a user wrote out stands between them.
_OPEN, _CLOSE = "\ue000", "\ue001"


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

    def render(self, messages: Sequence[Message]) -> str:
        """Render the text up to where the answer begins.

        Raises:
            MoekitError: where the template fails: with what it says, or that it takes too long or too much memory.
        """
        # Templates test whether a key is there, and would write "None".
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        variables = {**self.special_tokens, "messages": given, "tools": None, "documents": None}
        answer = self._worker.ask({"source": self.source, "variables": variables | {"add_generation_prompt": True}})
        if "error" in answer:
            raise MoekitError(f"The chat template fails: {answer['error'].rstrip('.')}.")
        return str(answer["text"])

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Render the text and encode it.

        A special token that a message writes out stays text, if the tokenizer can keep the two apart: such words are
        marked before the template sees them, and encoded by themselves. It raises what `render` raises.
        """
        special = tokenizer.special_tokens if isinstance(tokenizer, PromptTokenizer) else {}
        words = sorted(special, key=len, reverse=True)
        marked = [_marked(message, words) for message in messages]
        first, *others = re.split(f"{_OPEN}([0-9]+){_CLOSE}", self.render(marked))
        ids = tokenizer.encode(_unmarked(first))  # a template that cuts texts may leave half of a mark
        for index, piece in enumerate(others):
            if index % 2 == 0 and isinstance(tokenizer, PromptTokenizer):
                ids += _continued(tokenizer.encode_plain, words[int(piece)])
            elif text := _unmarked(piece):
                ids += _continued(tokenizer.encode, text)
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


def _marked(value: Any, words: Sequence[str]) -> Any:
    """Replace each special token in texts by its number between marks; marks that were there are taken out before."""
    if isinstance(value, Mapping):
        return {key: _marked(inner, words) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner, words) for inner in value]
    if not isinstance(value, str):
        return value
    text = _unmarked(value)
    if not words:
        return text
    pattern = "|".join(map(re.escape, words))
    return re.sub(pattern, lambda found: f"{_OPEN}{words.index(found[0])}{_CLOSE}", text)


def _continued(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Encode a text that stands within another: at the beginning, SentencePiece's tokenizers add a space."""
    line, ids = encode("\n"), encode("\n" + text)
    return ids[len(line) :] if ids[: len(line)] == line else encode(text)


def _unmarked(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")
