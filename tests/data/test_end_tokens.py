"""Tokens that end an answer by their texts, as llama.cpp finds them, whatever kind they are stored as."""

from pathlib import Path

import pytest
from tests.data.tokenizer_kinds import VOCAB, save

from moekit.checkpoint.gguf import GGUFFile, write_gguf
from moekit.data.end_tokens import known_ends
from moekit.data.gguf_exact_tokenizer import KEY
from moekit.data.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, GGUFTokenizer
from moekit.data.gguf_vocabulary import tokenizer_metadata
from moekit.data.tokenizers import FileTokenizer


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        ("a <|im_end|> <|endoftext|>", "<|im_end|> <|endoftext|>"),
        ("<|eot_id|> <|eom_id|> <|start_header_id|>", "<|eot_id|> <|eom_id|>"),
        ("<|end|> <|user|>", "<|end|>"),
        ("<|end|> <|return|> <|call|>", "<|return|> <|call|>"),
        ("<|end|> <|flush|> <|calls|>", "<|flush|> <|calls|>"),
        ("<|end|> <|return|>", "<|end|> <|return|>"),
        ("</s> <eos> <turn|> <|tool_response>", "<eos> <turn|> <|tool_response>"),
        ("<s> </s>", "</s>"),
        ("<|fim_pad|> <PAD> <|repo_name|> <REPO> <|file_sep|>", "<|fim_pad|> <|repo_name|> <|file_sep|>"),
        ("[EOS] [EOT] [PAD]", "[EOS] [EOT] [PAD]"),
        ("<start_of_turn> <end_of_turn>", "<end_of_turn>"),
        ("im_end eot", ""),
    ],
)
def test_what_ends_an_answer(texts: str, ends: str) -> None:
    ids = {text: id_ for id_, text in enumerate(texts.split())}
    assert known_ends(ids) == {ids[text] for text in ends.split()}


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE])
def test_an_end_of_a_turn_is_a_special_token_of_whatever_kind(kind: int, tmp_path: Path) -> None:
    keys = tokenizer_metadata(FileTokenizer(save("cut as qwen2", tmp_path)), VOCAB)
    del keys[KEY]
    words, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(words, list)
    assert isinstance(kinds, list)
    words[-1], kinds[-1] = "<end_of_turn>", kind
    file = tmp_path / "turn.gguf"
    write_gguf(file, "llama", keys, [])
    tokenizer = GGUFTokenizer(GGUFFile(file).metadata)
    assert VOCAB - 1 in tokenizer.end_tokens
    assert tokenizer.encode("a<end_of_turn>b")[1] == VOCAB - 1
    assert VOCAB - 1 not in tokenizer.encode_plain("a<end_of_turn>b")
    assert tokenizer.decode([VOCAB - 1]) == ""
