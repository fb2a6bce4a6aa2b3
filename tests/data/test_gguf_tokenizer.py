"""Tokenizers through GGUF metadata: a tokenizer.json's ids come back, and bad metadata is one sentence."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from moekit.checkpoint.gguf import GGUFFile, write_gguf
from moekit.checkpoint.gguf.metadata import Metadata
from moekit.core.errors import MoekitError, UsageError
from moekit.data.gguf_pre_tokenizers import PRE_TOKENIZERS, name_of
from moekit.data.gguf_tokenizer import GGUFTokenizer, gguf_tokenizer
from moekit.data.gguf_vocabulary import chat_template_metadata, tokenizer_metadata
from moekit.data.tokenizers import ByteTokenizer, FileTokenizer

VOCAB = 700
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def byte_level(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=PRE_TOKENIZERS[pre].whole_words_first))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre].steps()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 8, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return with_specials(tokenizer)


def sentence_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = pre_tokenizers.Metaspace(replacement="▁", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 8, special_tokens=special, limit_alphabet=120, max_token_length=8, show_progress=False
    )
    tokenizer.pre_tokenizer = words  # or merges would cross words, which they do not in published vocabularies
    tokenizer.train_from_iterator(texts(), trainer)
    # As published files have it: bytes are tokens and not special, and every way to cut a token is a merge.
    described = json.loads(tokenizer.to_str())
    described["pre_tokenizer"] = None
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < 3]
    vocabulary = described["model"]["vocab"]
    made = [left + right for left, right in described["model"]["merges"]]
    merges = [
        [word[:cut], word[cut:]]
        for word in made
        for cut in range(1, len(word))
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    described["model"]["merges"] = merges
    return with_specials(Tokenizer.from_str(json.dumps(described)))


def with_specials(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<own>", special=False, normalized=False)])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return tokenizer


def texts() -> list[str]:
    """Something with words and code in it: this file."""
    return Path(__file__).read_text(encoding="utf-8").splitlines(keepends=True)


BUILD: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level("gpt-2"),
    "llama-bpe": lambda: byte_level("llama-bpe"),
    "qwen2": lambda: byte_level("qwen2"),
    "smollm": lambda: byte_level("smollm"),
    "default": lambda: byte_level("default"),
    "llama": sentence_piece,
}


@pytest.fixture(params=sorted(BUILD), scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(BUILD[request.param](), tmp_path_factory.mktemp(request.param))


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(word) for name, word in (("bos_token_id", "<s>"), ("eos_token_id", "</s>"))}
    (folder / "config.json").write_text(json.dumps(ids | {"vocab_size": VOCAB}))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": TEMPLATE}))
    return folder


def through_file(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda keys: None) -> Metadata:
    """The tokenizer's metadata, written and read; `change` may spoil it."""
    keys: dict[str, Any] = tokenizer_metadata(FileTokenizer(folder), VOCAB) | chat_template_metadata(folder)
    change(keys)
    path = folder / "tokenizer.gguf"
    path.unlink(missing_ok=True)
    write_gguf(path, "llama", keys, [])
    return GGUFFile(path).metadata


def random_texts() -> list[str]:
    """Words, digits, spaces, scripts, controls, and characters that no vocabulary has."""
    draw = random.Random(0)
    pieces = [" ", "  ", "\n", "\r\n", "\t", "the", "'s", "'LL", "don't", "1234567", "٣٤", "中文字", "ñandú", "Ωμέγα"]
    pieces += [
        "🦙",
        "e\u0301",
        "\u00a0",
        "\u200b",
        "<|im_end|>",
        "<own>",
        "<s>",
        "▁",
        "...",
        "$+=^~|`",
        "f(x):",
        "\x00",
    ]
    made = ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(200)]
    ranges = [(0x20, 0x7F), (0xA0, 0xD7FF)]
    made += ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(20)) for _ in range(60)]
    return [*made, "", " ", "   leading", "trailing   ", "".join(texts()[:20])]


def test_ids_are_those_of_the_folder_s_tokenizer(folder: Path) -> None:
    ours, theirs = GGUFTokenizer(through_file(folder)), FileTokenizer(folder)
    assert ours.vocab_size == VOCAB  # the ids that the model has and the tokenizer lacks are unused tokens
    assert ours.start == theirs.start
    rust = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.encode_special_tokens = True
    for text in random_texts():
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
        assert ours.encode_prompt(text) == rust.encode(text).ids, text
        assert ours.encode_plain(text) == plain.encode(text, add_special_tokens=False).ids, text
    end = rust.token_to_id("<|im_end|>")
    assert ours.special_tokens["<|im_end|>"] == end
    assert ours.end_tokens == theirs.end_tokens == {rust.token_to_id("</s>")}
    assert GGUFTokenizer(through_file(folder), usual_keys=True).end_tokens == {end, rust.token_to_id("</s>")}
    assert ours.special_texts["bos_token"] == "<s>"
    assert ours.chat_template == TEMPLATE


@pytest.mark.parametrize("pre", [name for name, made in PRE_TOKENIZERS.items() if made.byte_level])
def test_every_name_is_recognised_by_what_it_does(pre: str) -> None:
    wanted = PRE_TOKENIZERS[pre]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = wanted.steps()
    described = json.loads(made.to_str())["pre_tokenizer"]
    found = name_of(described, whole_words_first=wanted.whole_words_first)
    assert found is not None
    assert PRE_TOKENIZERS[found].whole_words_first == wanted.whole_words_first
    steps = PRE_TOKENIZERS[found].steps()  # some names write the same cuts by other patterns
    for text in random_texts():
        assert steps.pre_tokenize_str(text) == made.pre_tokenizer.pre_tokenize_str(text), text


def test_steps_of_other_kinds_that_do_the_same_are_recognised() -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert name_of(json.loads(made.to_str())["pre_tokenizer"]) == "gpt-2"
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    assert name_of(json.loads(made.to_str())["pre_tokenizer"]) == "smollm"
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    assert name_of(json.loads(made.to_str())["pre_tokenizer"]) is None
    assert name_of(None) is None


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda keys: keys.pop(f"tokenizer.ggml.{key}")


def with_value(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda keys: keys.update({f"tokenizer.ggml.{key}": value})


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("tokens is missing", without("tokens")),
        ("merges is missing", without("merges")),
        ("'wordpiece', and moekit has", with_value("model", "wordpiece")),
        ("'nonsense', which moekit does not know", with_value("pre", "nonsense")),
        ("holds a token twice", with_value("tokens", ["a"] * VOCAB)),
        ("merges do not fit the tokens", with_value("merges", ["no such"])),
        ("pairs of tokens", with_value("merges", ["nospace"])),
        ("token_type has 2 entries", with_value("token_type", [1, 1])),
        ("must be an array of texts", with_value("tokens", [1, 2])),
        ("must be an integer", with_value("bos_token_id", "one")),
    ],
)
def test_bad_metadata_is_one_sentence(message: str, change: Callable[[dict[str, Any]], Any], gpt2: Path) -> None:
    with pytest.raises(MoekitError, match=message) as error:
        GGUFTokenizer(through_file(gpt2, change), usual_keys=True)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(BUILD["gpt-2"](), tmp_path_factory.mktemp("gpt2"))


def test_a_model_without_a_tokenizer_reads_bytes_or_is_refused(tmp_path: Path, gpt2: Path) -> None:
    none = Metadata({}, Path("x.gguf"))
    assert isinstance(gguf_tokenizer(none, 256), ByteTokenizer)
    with pytest.raises(UsageError, match="holds no tokenizer"):
        gguf_tokenizer(none, 1000)
    with pytest.raises(MoekitError, match="tokens are 700, and the model has 600"):
        gguf_tokenizer(through_file(gpt2), 600)


def test_what_gguf_has_no_word_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="of the kind 'WordLevel'"):
        tokenizer_metadata(FileTokenizer(tmp_path), 10)
    made = Tokenizer(models.BPE({"a": 0, "b": 11}, []))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="has ids up to 11"):
        tokenizer_metadata(FileTokenizer(tmp_path), 10)
    with pytest.raises(UsageError, match="no name for"):
        tokenizer_metadata(FileTokenizer(tmp_path), 20)


@pytest.mark.parametrize("odd", ["a\0b", "\0", "\0\0"])
def test_a_token_may_hold_any_character(gpt2: Path, odd: str) -> None:
    def put(keys: dict[str, Any]) -> None:
        keys["tokenizer.ggml.tokens"][-1] = odd

    tokenizer, plain = GGUFTokenizer(through_file(gpt2, put)), GGUFTokenizer(through_file(gpt2))
    assert tokenizer.vocab_size == plain.vocab_size
    text = "The quick brown fox"
    assert tokenizer.encode(text) == plain.encode(text)
