"""The forms in which servers send one and the same answer, and those in which they send none.

Each is a body with its headers. They stand for what Azure, vLLM, SGLang, llama.cpp, Ollama, OpenRouter, LiteLLM, Groq,
Mistral, Moonshot, Zhipu, DeepSeek, FastAPI servers and proxies before them have been seen to send.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ANSWER = "Größe: 7 € 🙂."
PIECES = ("Größe", ": 7 €", " 🙂", ".")
STREAM, JSON = "text/event-stream", "application/json"


@dataclass(frozen=True)
class Form:
    """A body of a response with status 200."""

    body: bytes
    content_type: str = STREAM
    headers: Mapping[str, str] = field(default_factory=dict)


def event(value: Any, *, end: str = "\n\n", field_name: str = "data: ") -> str:
    return f"{field_name}{json.dumps(value, ensure_ascii=False)}{end}"


def chunk(delta: Any = None, reason: Any = None, **changes: Any) -> dict[str, Any]:
    """An event as OpenAI's API has it."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": reason}
    named = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return named | {"choices": [choice]} | changes


def without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key not in keys}


CHUNKS = [chunk({"content": piece}) for piece in PIECES]
END = chunk({}, "stop")
DONE = "data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
WHOLE = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [CHOICE], "usage": USAGE}


def stream(*events: Any, done: str = DONE, before: str = "", **form: Any) -> Form:
    text = before + "".join(each if isinstance(each, str) else event(each) for each in events) + done
    return Form(text.encode(), **form)


def each_choice(change: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """The events with another choice in each."""
    return [value | {"choices": [change(value["choices"][0])]} for value in (*CHUNKS, END)]


def whole(choice: Any = CHOICE, **changes: Any) -> Form:
    return Form(json.dumps(WHOLE | {"choices": [choice]} | changes, ensure_ascii=False).encode(), JSON)


def message(content: Any, **more: Any) -> Form:
    return whole(CHOICE | {"message": {"role": "assistant", "content": content} | more})


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


NAMELESS = {"id": "", "object": "", "created": 0, "model": ""}
ORDINARY = "".join(event(each) for each in (*CHUNKS, END)) + DONE

FORMS: dict[str, Form] = {
    # The chunks of a stream.
    "as documented": stream(*CHUNKS, END),
    "first without choices": stream(NAMELESS | {"choices": [], "prompt_filter_results": []}, *CHUNKS, END),
    "a filter's result without delta": stream(
        *CHUNKS, NAMELESS | {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}]}, END
    ),
    "last without delta": stream(*CHUNKS, chunk(choices=[{"index": 0, "finish_reason": "stop"}])),
    "delta null": stream(*CHUNKS, chunk(choices=[{"index": 0, "delta": None, "finish_reason": "stop"}])),
    "choices null": stream(NAMELESS | {"choices": None}, *CHUNKS, END, chunk(choices=None, usage=USAGE)),
    "choices missing": stream({"id": "c"}, *CHUNKS, END, {"usage": USAGE}),
    "no object": stream(*(without(each, "object") for each in (*CHUNKS, END))),
    "only choices": stream(*({"choices": each["choices"]} for each in (*CHUNKS, END))),
    "object of a whole answer": stream(*(each | {"object": "chat.completion"} for each in (*CHUNKS, END))),
    "object null": stream(*(each | {"object": None} for each in (*CHUNKS, END))),
    "object of another API": stream(*(each | {"object": "text_completion"} for each in (*CHUNKS, END))),
    "error null beside the choices": stream(*(each | {"error": None} for each in (*CHUNKS, END))),
    "messages in the place of deltas": stream(
        *each_choice(lambda one: without(one, "delta") | {"message": one["delta"]})
    ),
    "texts in the place of deltas": stream(
        *each_choice(lambda one: without(one, "delta") | {"text": one["delta"].get("content", "")})
    ),
    "the whole message again at the end": stream(*CHUNKS, chunk(choices=[CHOICE])),
    "choices as an object": stream(*(each | {"choices": {"0": each["choices"][0]}} for each in (*CHUNKS, END))),
    "one choice, no list": stream(*(each | {"choices": each["choices"][0]} for each in (*CHUNKS, END))),
    "index as a string": stream(*each_choice(lambda one: one | {"index": "0"})),
    "index missing": stream(*each_choice(lambda one: without(one, "index"))),
    "another choice beside it": stream(
        *(one for each in CHUNKS for one in (each, chunk(choices=[{"index": 1, "delta": {"content": "No."}}]))), END
    ),
    "content in parts": stream(*(chunk({"content": parts(piece)}) for piece in PIECES), END),
    "content as a part": stream(*(chunk({"content": parts(piece)[0]}) for piece in PIECES), END),
    "content in a list of strings": stream(*(chunk({"content": [piece]}) for piece in PIECES), END),
    "delta as a string": stream(*(chunk(piece) for piece in PIECES), END),
    "content null at the beginning": stream(chunk({"role": "assistant", "content": None}), *CHUNKS, END),
    "reasoning_content before it": stream(chunk({"reasoning_content": "hmm", "content": None}), *CHUNKS, END),
    "reasoning before it": stream(chunk({"reasoning": "hmm"}), chunk({"content": "", "reasoning": "m"}), *CHUNKS, END),
    "thinking parts before it": stream(
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}]}), *CHUNKS, END
    ),
    "events that are none": stream({"type": "ping"}, "data: null\n\n", "data: 5\n\n", *CHUNKS, END),
    # How it ends.
    "finish_reason missing": stream(*each_choice(lambda one: without(one, "finish_reason"))),
    "finish_reason empty": stream(*each_choice(lambda one: one | {"finish_reason": one["finish_reason"] or ""})),
    "finish_reason the word null": stream(
        *each_choice(lambda one: one | {"finish_reason": one["finish_reason"] or "null"})
    ),
    "finish_reason unknown": stream(*CHUNKS, chunk({}, "eos_token")),
    "finish_reason an object": stream(*CHUNKS, chunk({}, {"type": "stop"})),
    "finish_reason with the last text": stream(*CHUNKS[:-1], chunk({"content": PIECES[-1]}, "stop")),
    "no [DONE]": stream(*CHUNKS, END, done=""),
    "neither [DONE] nor finish_reason": stream(*CHUNKS, done=""),
    "[DONE] without a space": stream(*CHUNKS, END, done="data:[DONE]\n\n"),
    "[DONE] as a string": stream(*CHUNKS, END, done='data: "[DONE]"\n\n'),
    "[DONE] without a field": stream(*CHUNKS, END, done="[DONE]"),
    "[DONE] without an end of line": stream(*CHUNKS, END, done="data: [DONE]"),
    "more after [DONE]": stream(*CHUNKS, END, done=DONE + ": bye\n\n" + event(chunk({"content": "No."}))),
    "last event without a blank line": stream(*CHUNKS, event(END, end=""), done=""),
    # What it cost.
    "usage last, without choices": stream(*CHUNKS, END, chunk(choices=[], usage=USAGE)),
    "usage null until the end": stream(*(each | {"usage": None} for each in (*CHUNKS, END)), chunk(usage=USAGE)),
    "usage in every event": stream(*(each | {"usage": USAGE} for each in (*CHUNKS, END))),
    "usage in the choice": stream(*CHUNKS, chunk(choices=[END["choices"][0] | {"usage": USAGE}])),
    "usage under x_groq": stream(*CHUNKS, END | {"x_groq": {"usage": USAGE}}),
    "usage as strings": stream(*CHUNKS, END | {"usage": {key: str(count) for key, count in USAGE.items()}}),
    "usage by other names": stream(*CHUNKS, END | {"usage": {"input_tokens": 3, "output_tokens": 5}}),
    # The lines of a stream.
    "CRLF": Form(ORDINARY.replace("\n", "\r\n").encode()),
    "CR": Form(ORDINARY.replace("\n", "\r").encode()),
    "no space after the colon": Form(ORDINARY.replace("data: ", "data:").encode()),
    "one line end between events": Form(ORDINARY.replace("\n\n", "\n").encode()),
    "comments": Form((": hello\n\n" + ORDINARY.replace("\n\n", "\n\n: keep-alive\n\n")).encode()),
    "a comment inside an event": Form(ORDINARY.replace("data: ", ": x\ndata: ").encode()),
    "event, id and retry": Form(ORDINARY.replace("data: ", "event: message\nid: 1\nretry: 3000\ndata: ").encode()),
    "a byte-order mark": Form(b"\xef\xbb\xbf" + ORDINARY.encode()),
    "blank lines at the beginning": Form(b"\n\n\n" + ORDINARY.encode()),
    "escaped characters": stream(*(f"data: {json.dumps(each)}\n\n" for each in (*CHUNKS, END))),
    "an event of several lines": Form(
        "".join(
            "".join(f"data: {line}\n" for line in json.dumps(each, ensure_ascii=False, indent=1).split("\n")) + "\n"
            for each in (*CHUNKS, END)
        ).encode()
        + DONE.encode()
    ),
    "an event of several lines, CRLF": Form(
        "".join(
            "".join(f"data: {line}\r\n" for line in json.dumps(each, indent=1).split("\n")) + "\r\n"
            for each in (*CHUNKS, END)
        ).encode()
    ),
    "lines of JSON": Form("".join(event(each, end="\n", field_name="") for each in (*CHUNKS, END)).encode(), STREAM),
    "an array of events": Form(json.dumps([*CHUNKS, END], indent=1).encode(), JSON),
    "called JSON": Form(ORDINARY.encode(), JSON),
    "called text": Form(ORDINARY.encode(), "text/plain; charset=iso-8859-1"),
    "called nothing": Form(ORDINARY.encode(), ""),
    "gzip": Form(gzip.compress(ORDINARY.encode()), STREAM, {"Content-Encoding": "gzip"}),
    "deflate": Form(zlib.compress(ORDINARY.encode()), STREAM, {"Content-Encoding": "deflate"}),
    # A whole body where a stream was asked for.
    "whole": whole(),
    "whole, as a stream": Form(whole().body, STREAM),
    "whole, as a page": Form(whole().body, "text/html"),
    "whole, as one event": stream(WHOLE),
    "whole, over many lines": Form(json.dumps(WHOLE, indent=2).encode() + b"\n", JSON),
    "whole, with a byte-order mark": Form(b"\xef\xbb\xbf" + whole().body, JSON),
    "whole, gzip": Form(gzip.compress(whole().body), JSON, {"Content-Encoding": "gzip"}),
    "whole, without usage": Form(json.dumps(without(WHOLE, "usage")).encode(), JSON),
    "whole, without object": Form(json.dumps(without(WHOLE, "object")).encode(), JSON),
    "whole, without finish_reason": whole(without(CHOICE, "finish_reason")),
    "whole, in a delta": whole(without(CHOICE, "message") | {"delta": CHOICE["message"]}),
    "whole, message as a string": whole(CHOICE | {"message": ANSWER}),
    "whole, in a text": whole(without(CHOICE, "message") | {"text": ANSWER}),
    "whole, in parts": message([*parts(PIECES[0]), *parts("".join(PIECES[1:]))]),
    "whole, after thoughts": message([{"type": "thinking", "thinking": "hmm"}, *parts(ANSWER)]),
    "whole, with reasoning": message(ANSWER, reasoning_content="hmm", reasoning="hmm"),
    "whole, as a refusal": message(None, refusal=ANSWER),
    "whole, error null": whole(error=None),
    "whole, an error that is none": whole(error={}),
    "whole, usage null": whole(usage=None),
}


def error(value: Any, content_type: str = JSON) -> Form:
    return Form(json.dumps(value).encode(), content_type)


FAILURES: dict[str, tuple[Form, str, bool]] = {
    # a body without an answer: what is said of it, and whether it is worth asking again
    "error object": (error({"error": {"message": "no credit", "code": "billing"}}), "no credit", False),
    "error as a string": (error({"error": "no such model"}), "no such model", False),
    "error in an error": (error({"error": {"error": {"message": "no such thing"}}}), "no such thing", False),
    "error of vLLM": (error({"object": "error", "message": "no room", "type": "BadRequestError"}), "no room", False),
    "detail": (error({"detail": "Not Found"}), "Not Found", False),
    "details": (error({"detail": [{"loc": ["body"], "msg": "field required"}]}), "field required", False),
    "errors": (error({"errors": [{"message": "first"}, {"message": "second"}]}), "first", False),
    "message alone": (error({"message": "forbidden"}), "forbidden", False),
    "error too many": (error({"error": {"message": "slow down", "code": 429}}), "slow down", True),
    "error too many, as a string": (error({"error": {"message": "slow down", "code": "429"}}), "slow down", True),
    "error of a busy server": (error({"error": {"message": "busy", "type": "overloaded_error"}}), "busy", True),
    "error of a failing server": (error({"error": {"message": "oh", "status": 503}}), "oh", True),
    "error in a stream": (stream({"error": {"message": "no credit"}}), "no credit", False),
    "error in a stream, without [DONE]": (stream({"error": {"message": "no credit"}}, done=""), "no credit", False),
    "error after the first piece": (stream(CHUNKS[0], {"error": {"message": "broken"}}), "broken", False),
    "error under a choice": (
        stream(chunk(choices=[{"delta": {"content": ""}, "finish_reason": "error", "error": {"message": "oh"}}])),
        "oh",
        False,
    ),
    "error without a word": (stream(chunk({}, "error")), "it gives no reason", True),
    "event of an error": (stream("event: error\n", 'data: {"message": "no credit"}\n\n'), "no credit", False),
    "event of an error in words": (stream("event: error\n", "data: no credit\n\n"), "no credit", False),
    "error as a line in a stream": (stream('{"error": {"message": "no credit"}}\n'), "no credit", False),
    "a page": (Form(b"<!DOCTYPE html><title>Sign in</title>", "text/html"), "HTML and no answer (Sign in)", False),
    "a page as JSON": (Form(b"<html><h1>502 Bad Gateway</h1></html>", JSON), "(502 Bad Gateway)", False),
    "words": (Form(b"upstream connect error", "text/plain"), "no answer: upstream connect error", False),
    "nothing": (Form(b"", JSON), "its server sent nothing", False),
    "nothing, as a stream": (Form(b""), "its server sent nothing", False),
    "white space": (Form(b" \r\n\n"), "its server sent nothing", False),
    "comments alone": (Form(b": a\n\n: b\n\n"), "its server sent nothing", False),
    "[DONE] alone": (Form(DONE.encode()), "no answer: data: [DONE]", False),
    "choices empty": (error(WHOLE | {"choices": []}), "what its server sent is no answer", False),
    "another shape": (error({"answer": ANSWER}), "what its server sent is no answer", False),
    "broken JSON": (Form(b'{"choices": [', JSON), "what its server sent is no answer", False),
    "not gzip": (Form(b"{}", JSON, {"Content-Encoding": "gzip"}), "is not packed as it says it is", False),
    "content empty": (message(""), "gave an empty answer", False),
    "content null": (message(None), "gave an empty answer", False),
    "a call of a tool": (message(None, tool_calls=[{"id": "x"}]), "it calls a tool", False),
    "reasoning alone": (message(None, reasoning_content="hmm"), "after 3 characters of reasoning", False),
}
