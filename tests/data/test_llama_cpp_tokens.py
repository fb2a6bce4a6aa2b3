"""GGUF's own keys as llama.cpp reads them, name by name; where llama-cpp-python is installed.

`MOEKIT_TEXTS=10000` tries as many. Where moekit has the published pattern and llama.cpp one of its own, some texts
differ: accents that stand for themselves are no part of a word there (tekken, gpt-4o, kimi-k2 and their kin), capital
letters are not told from others (tiny_aya), an ideographic space is no punctuation (deepseek-llm), digits are ASCII's
alone (superbpe), and several spaces before a number are cut once more (afmoe).
"""

import os
from pathlib import Path
from typing import Any

import pytest
from tests.data.tokenizer_kinds import KINDS, VOCAB, named, random_texts, save
from tokenizers import Tokenizer

from moekit.checkpoint.gguf import GGUFFile, write_gguf
from moekit.data.gguf_pre_tokenizers import PRE_TOKENIZERS
from moekit.data.gguf_tokenizer import GGUFTokenizer
from moekit.data.gguf_vocabulary import tokenizer_metadata
from moekit.data.tokenizers import FileTokenizer

llama_cpp: Any = pytest.importorskip("llama_cpp")
TEXTS = int(os.environ.get("MOEKIT_TEXTS", "100"))
# The share of texts that may differ.
_ACCENTS = ("tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "granite-embed-multi-97m", "kimi-k2")
DIFFERING = {
    **dict.fromkeys(_ACCENTS, 0.03),
    **dict.fromkeys(("deepseek-llm", "superbpe"), 0.03),
    "afmoe": 0.05,
    **dict.fromkeys(("tiny_aya", "cohere2moe"), 0.1),
}


@pytest.mark.parametrize("name", [name for name, known in PRE_TOKENIZERS.items() if known.byte_level])
def test_ids_are_those_of_llama_cpp(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "named", named(name))
    folder = save("named", tmp_path)
    keys = tokenizer_metadata(FileTokenizer(folder), VOCAB) | {"tokenizer.ggml.pre": name}
    file = tmp_path / "tokens.gguf"
    write_gguf(file, "llama", keys, [])
    theirs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ours = GGUFTokenizer(GGUFFile(file).metadata, usual_keys=True)
    texts = list(random_texts(TEXTS, Tokenizer.from_file(str(folder / "tokenizer.json"))))
    differing = [
        text for text in texts if theirs.tokenize(text.encode(), add_bos=False, special=True) != ours.encode(text)
    ]
    assert len(differing) <= DIFFERING.get(name, 0) * len(texts), differing[:3]
