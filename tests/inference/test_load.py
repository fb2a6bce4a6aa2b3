"""What a model's folder has to hold, found before its weights are read."""

import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import DENSE, model_config
from tests.inference.tiny_models import END, START, TOKENIZERS, llama, save_tokenizer

from moekit.config import EncoderConfig
from moekit.convert.export.gguf_export import plan_quantization
from moekit.core.errors import MoekitError, UsageError
from moekit.data.tokenizers import ByteTokenizer
from moekit.inference import GenerationOptions, complete, load_runner
from moekit.kernels.packed import F32
from moekit.models import Decoder, build


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_bytes_end_at_a_separator(tmp_path: Path) -> None:
    Decoder(model_config()).save(tmp_path / "bytes")
    loaded = load_runner(tmp_path / "bytes", context=9)
    assert isinstance(loaded.tokenizer, ByteTokenizer)
    assert (loaded.end_tokens, loaded.chat_template, loaded.runner.context) == (frozenset({0}), None, 9)
    (completion,) = complete(loaded.runner, loaded.tokenizer, ["ab"], GenerationOptions(max_tokens=3))
    assert completion.prompt_tokens == 3


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 5}, None, {5}),
        ({"eos_token_id": 5}, {"eos_token_id": [6, 7]}, {6, 7}),
        ({"eos_token_id": [5]}, {"temperature": 1}, {5}),
        ({"eos_token_id": None}, None, set()),
    ],
)
def test_end_tokens(copied: Path, config: object, generation: object, expected: set[int]) -> None:
    settings = json.loads((copied / "config.json").read_text())
    assert isinstance(config, dict)
    (copied / "config.json").write_text(json.dumps(settings | config))
    (copied / "generation_config.json").unlink()
    if generation is not None:
        (copied / "generation_config.json").write_text(json.dumps(generation))
    tokenizers_own = 1
    assert load_runner(copied).end_tokens == expected | {tokenizers_own}


def test_what_is_missing_is_said_before_weights_are_read(copied: Path, tmp_path: Path) -> None:
    for file in copied.glob("*.safetensors"):
        file.write_bytes(b"no weights")
    with pytest.raises(UsageError, match="context is 96 tokens; --context 97 is more"):
        load_runner(copied, context=97)
    (copied / "tokenizer_config.json").write_text("{")
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(MoekitError, match=r"tokenizer_config.json is not valid JSON"):
        load_runner(copied)
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(MoekitError, match=r"tokenizer.json is not a tokenizer"):
        load_runner(copied)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"has no tokenizer.json, and 384 tokens are not bytes"):
        load_runner(copied)
    build(EncoderConfig(vocab_size=260, width=8, context=12, heads=2, layers=(DENSE,))).save(tmp_path / "encoder")
    with pytest.raises(UsageError, match="causal decoders, and this model is of the kind 'encoder'"):
        load_runner(tmp_path / "encoder")
    with pytest.raises(UsageError, match="There is no folder 'nowhere'"):
        load_runner("nowhere")


@pytest.mark.parametrize("make", TOKENIZERS)
def test_a_gguf_file_is_the_folder_it_came_from(tmp_path: Path, make: str) -> None:
    """In fp32: the same texts, the same template, the same end."""
    tokenizer = TOKENIZERS[make]()
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    llama(tmp_path / "model", bos_token_id=start, eos_token_id=end)
    save_tokenizer(tokenizer, tmp_path / "model")
    file = tmp_path / "model.gguf"
    plan_quantization(tmp_path / "model", F32).run(file)
    theirs, ours = load_runner(tmp_path / "model"), load_runner(file)
    assert ours.end_tokens == theirs.end_tokens
    options = GenerationOptions(max_tokens=10)
    messages = [{"role": "user", "content": "über <s> 😀"}]
    texts = []
    for loaded in (theirs, ours):
        assert loaded.chat_template is not None
        prompts = ["The quick 敏捷", loaded.chat_template.encode(messages, loaded.tokenizer)]
        texts.append([one.text for one in complete(loaded.runner, loaded.tokenizer, prompts, options)])
    assert texts[0] == texts[1]
    with pytest.raises(UsageError, match="--context 97 is more"):
        load_runner(file, context=97)
    file.write_bytes(b"GGUF")
    with pytest.raises(MoekitError, match=r"model\.gguf"):
        load_runner(file)
