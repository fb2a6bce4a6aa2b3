"""Every verb that reads or writes text, in every locale, with every stream closed, full, broken off or no text.

It ends with a sentence or does its work; nothing is unexpected. MOEKIT_WHOLE_MATRIX=1 runs all of it, else a part.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from tests.inference.tiny_models import byte_level, llama, save_tokenizer

from moekit import quantize

PART = None if os.environ.get("MOEKIT_WHOLE_MATRIX") else 12
LOCALES = {
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "C": {"LC_ALL": "C"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no such locale": {"LC_ALL": "xx_YY.ISO-8859-99"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "utf-16": {"PYTHONIOENCODING": "utf-16"},
}
STREAMS = {
    "as usual": "",
    "no input": "</dev/null",
    "input closed": "<&-",
    "input is no text": "<{bytes}",
    "input is zeros": "<{zeros}",
    "output closed": ">&-",
    "error closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "output full": ">/dev/full",
    "error full": "2>/dev/full",
    "reader gone": "| true",
    "both readers gone": "2>&1 | true",
}
VERBS = {
    "generate": ["generate", "{model}", "--prompt", "naïve 敏捷", "--max-tokens", "8"],
    "generate from input": ["generate", "{model}", "--prompt-file", "-", "--max-tokens", "8"],
    "generate json": ["generate", "{model}", "--prompt", "a", "--prompt", "b", "--max-tokens", "3", "--json"],
    "generate no text": ["generate", "{model}", "--prompt", "ca\udce9", "--stop", "\udcff"],
    "chat": ["chat", "{model}", "--max-tokens", "8"],
    "chat json": ["chat", "{model}", "--max-tokens", "3", "--json", "--system", "brève"],
    "ask": ["agents", "ask", "{agents}", "naïve 敏捷"],
    "ask from input": ["agents", "ask", "{agents}", "-", "--json"],
    "plan": ["plan", "llama-2-7b"],
    "no such model": ["generate", "敏捷 \udce9", "--prompt", "a"],
    "help": ["--help"],
}
CASES = list(product(VERBS, LOCALES, STREAMS))
SENTENCES = 5  # with how the verb is called, and that output is closed


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("streams")
    llama(folder / "model")
    save_tokenizer(byte_level(), folder / "model")
    quantize(folder / "model", folder / "model.gguf", type="f32")
    (folder / "agents.yaml").write_text(f"members:\n  m: {{path: {folder / 'model.gguf'}, max_tokens: 8}}\n")
    (folder / "text").write_text("naïve 敏捷\nTwo\n", encoding="utf-8")
    (folder / "bytes").write_bytes(b"One\nca\xe9 fe\nTwo\n\xff\xfe\n")
    (folder / "zeros").write_bytes(b"\0" * 20 + b"\n")
    return {
        "model": folder / "model.gguf",
        "agents": folder / "agents.yaml",
        "text": folder / "text",
        "bytes": folder / "bytes",
        "zeros": folder / "zeros",
    }


def run(verb: str, locale: str, stream: str, places: dict[str, Path]) -> Iterator[str]:
    """Run a case, and yield what is wrong with how it ended."""
    words = [word.format_map(places) for word in VERBS[verb]]
    line = f'"$@" {STREAMS[stream].format_map(places)}'
    if "<" not in line:
        line = line.replace('"$@"', f'"$@" <{places["text"]}')
    command = ["sh", "-c", line, "sh", sys.executable, "-c", "from moekit.cli import main; main()", *words]
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    ended = subprocess.run(
        command, capture_output=True, check=False, timeout=120, env=usual | {"OMP_NUM_THREADS": "1"} | LOCALES[locale]
    )
    encoding = "utf-16" if locale == "utf-16" else "utf-8"
    said = (ended.stderr + ended.stdout).decode(encoding, "replace")
    if any(word in said for word in ("Traceback", "Unexpected", "Exception ignored", "[Errno")):
        yield said
    if ended.returncode not in (0, 1, 2):
        yield f"status {ended.returncode}: {said}"
    if ended.returncode and stream not in ("error closed", "error full", "all closed", "both readers gone"):
        sentences = ended.stderr.decode(encoding, "replace").strip().splitlines()
        if not (stream == "reader gone" or 1 <= len(sentences) <= SENTENCES):
            yield f"status {ended.returncode} with {len(sentences)} lines: {said}"


def test_nothing_is_unexpected_in_any_locale_with_any_stream(places: dict[str, Path]) -> None:
    cases = CASES if PART is None else random.Random(7).sample(CASES, PART)
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda case: (case, list(run(*case, places))), cases)
        assert {case: problems for case, problems in found if problems} == {}
