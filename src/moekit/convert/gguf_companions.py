"""What stands beside the weights of a folder that is made of a GGUF file: its tokenizer, from the file's metadata."""

import json
from pathlib import Path

from moekit.checkpoint.gguf import GGUFFile, is_gguf
from moekit.convert.conversion import json_text
from moekit.data.gguf_tokenizer import GGUFTokenizer, gguf_tokenizer


def companion_texts(source: Path, vocab_size: int) -> dict[str, str]:
    """Give the texts of a GGUF file's tokenizer by the names of their files; there are none where it has none.

    Args:
        source: the model; that of a folder lies in its files.
        vocab_size: its vocabulary.

    Raises:
        MoekitError: where the tokenizer cannot be used.
    """
    if not is_gguf(source):
        return {}
    metadata = GGUFFile(source).metadata
    if metadata.get("tokenizer.ggml.model") in (None, "no_vocab", "none"):
        return {}
    tokenizer = gguf_tokenizer(metadata, vocab_size)
    assert isinstance(tokenizer, GGUFTokenizer)
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_texts}
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    return {
        "tokenizer.json": json.dumps(tokenizer.described(), ensure_ascii=False),
        "tokenizer_config.json": json_text(settings),
        "generation_config.json": json_text({"eos_token_id": sorted(tokenizer.end_tokens)}),
    }
