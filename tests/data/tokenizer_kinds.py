"""Tokenizers of every kind that decoders are published with, small, and texts that they differ on."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from moekit.data.gguf_pre_tokenizers import PRE_TOKENIZERS

VOCAB = 640
START, END, TURN, UNKNOWN = "<|start|>", "<|stop|>", "<|turn|>", "<unk>"
Build = Callable[[], Tokenizer]

_CORPUS = [
    *Path(__file__).read_text(encoding="utf-8").splitlines(keepends=True),
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Le cœur déçu mais l'âme plutôt naïve.\n",
    "中文字很多，日本語のテキスト、한국어 문장입니다. Съешь же ещё этих мягких французских булок.\n",
    "It's 1234567 or 3.14; they'LL see, WE'RE here. HTTPServerError in parseJSON(x) {return x**2;}\n",
]


def byte_level(steps: Any, *, normalizer: Any = None, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = steps
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 12, initial_alphabet=alphabet, special_tokens=[START, END], show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def named(pre: str, **options: Any) -> Build:
    known = PRE_TOKENIZERS[pre]
    return lambda: byte_level(known.steps(), **({"ignore_merges": known.whole_words_first} | options))


def sentence_piece(before: Any, steps: Any, *, all_cuts: bool = True, strip: bool = True) -> Build:
    """BPE with bytes to fall back to. all_cuts: whether every way to cut a token is a merge, as scores have it."""

    def build() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
        special = [UNKNOWN, START, END, *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB - 12, special_tokens=special, limit_alphabet=90, max_token_length=8, show_progress=False
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
        tokenizer.train_from_iterator(_CORPUS, trainer)
        described = json.loads(tokenizer.to_str())
        described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < 3]
        words = described["model"]["vocab"]
        if all_cuts:
            made = [left + right for left, right in described["model"]["merges"]]
            cuts = [(word, cut) for word in made for cut in range(len(word) - 1, 0, -1)]
            pairs = [[word[:cut], word[cut:]] for word, cut in cuts if word[:cut] in words and word[cut:] in words]
            described["model"]["merges"] = pairs
        tokenizer = Tokenizer.from_str(json.dumps(described))
        if before is not None:
            tokenizer.normalizer = before
        tokenizer.pre_tokenizer = steps
        last = [decoders.Strip(" ", 1, 0)] if strip else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
        )
        return tokenizer

    return build


def unigram(before: Any, steps: Any, *, byte_fallback: bool = False) -> Build:
    def build() -> Tokenizer:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = [UNKNOWN, START, END, *(f"<0x{byte:02X}>" for byte in range(256) if byte_fallback)]
        trainer = trainers.UnigramTrainer(
            vocab_size=VOCAB - 12, special_tokens=special, unk_token=UNKNOWN, show_progress=False
        )
        tokenizer.train_from_iterator(_CORPUS, trainer)
        described = json.loads(tokenizer.to_str())
        described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < 3]
        described["model"]["byte_fallback"] = byte_fallback
        tokenizer = Tokenizer.from_str(json.dumps(described))
        if before is not None:
            tokenizer.normalizer = before
        tokenizer.pre_tokenizer = steps
        tokenizer.decoder = decoders.Metaspace()
        return tokenizer

    return build


def adding(*tokens: AddedToken, build: Build = named("qwen2")) -> Build:  # noqa: B008 - a function, made once
    def added() -> Tokenizer:
        tokenizer = build()
        for token in tokens:
            tokenizer.add_tokens([token])
        return tokenizer

    return added


def around(single: str, build: Build = named("gpt-2")) -> Build:  # noqa: B008
    def wrapped() -> Tokenizer:
        tokenizer = build()
        ids = [(word, tokenizer.token_to_id(word)) for word in (START, END)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
        return tokenizer

    return wrapped


def _metaspace(scheme: str, *, split: bool = True) -> Any:
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)  # type: ignore[arg-type]


def _token(word: str = "<own>", **flags: Any) -> AddedToken:
    return AddedToken(word, **({"special": False, "normalized": False} | flags))


_SPACES = normalizers.Replace(" ", "▁")
_GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_FALCON = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("contiguous"),
        _GPT_2,
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
)
_CHANGES = {
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "Lowercase": normalizers.Lowercase(),
    "StripAccents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "Strip": normalizers.Strip(),
    "Nmt": normalizers.Nmt(),
    "Replace": normalizers.Replace("``", '"'),
    "Prepend": normalizers.Prepend("_"),
}

KINDS: dict[str, Build] = {
    # Each way to cut that GGUF has a name for.
    **{
        f"cut as {name}": named(name)
        for name, known in PRE_TOKENIZERS.items()
        if known.byte_level and next(other for other, same in PRE_TOKENIZERS.items() if same == known) == name
    },
    # The same in other steps, and what those names do not say.
    "cut by GPT-2's own step": lambda: byte_level(_GPT_2),
    "cut by Falcon's own steps": lambda: byte_level(_FALCON),
    "cut by digits": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _GPT_2])),
    "a space before a text": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt-2, whole words first": named("gpt-2", ignore_merges=True),
    "llama-bpe, merges first": named("llama-bpe", ignore_merges=False),
    **{f"normalised by {name}": named("qwen2", normalizer=step) for name, step in _CHANGES.items()},
    # SentencePiece, with each scheme of the space before a text.
    "pieces, Prepend": sentence_piece(normalizers.Sequence([normalizers.Prepend("▁"), _SPACES]), None),
    "pieces, always": sentence_piece(None, _metaspace("always", split=False)),
    "pieces, always, split": sentence_piece(None, _metaspace("always")),
    "pieces, first": sentence_piece(None, _metaspace("first", split=False)),
    "pieces, first, split": sentence_piece(None, _metaspace("first")),
    "pieces, never": sentence_piece(None, _metaspace("never", split=False), strip=False),
    "pieces, Gemma's": sentence_piece(_SPACES, pre_tokenizers.Split(" ", "merged_with_previous"), strip=False),
    "pieces, NFKC": sentence_piece(normalizers.Sequence([normalizers.NFKC(), _SPACES]), None, strip=False),
    "pieces, merges of their own": sentence_piece(_SPACES, None, all_cuts=False, strip=False),
    "pieces, cut at digits": sentence_piece(_SPACES, pre_tokenizers.Digits(individual_digits=True), strip=False),
    "unigram, always": unigram(None, _metaspace("always")),
    "unigram, first": unigram(None, _metaspace("first")),
    "unigram, never": unigram(None, _metaspace("never")),
    "unigram, unsplit": unigram(None, _metaspace("always", split=False)),
    "unigram, NFKC": unigram(normalizers.NFKC(), _metaspace("always")),
    "unigram, one space": unigram(normalizers.Replace(Regex(" {2,}"), " "), _metaspace("always")),
    "unigram, bytes": unigram(None, _metaspace("always"), byte_fallback=True),
    # Added tokens with each flag, and where tokenizers are told apart by them.
    "added": adding(_token(), _token("<|note|>", special=True)),
    **{f"added, {flag}": adding(_token(**{flag: True})) for flag in ("lstrip", "rstrip", "single_word", "normalized")},
    "added, all flags": adding(_token("own", lstrip=True, rstrip=True, single_word=True, normalized=True)),
    "added, special, lstrip": adding(_token("<mask>", special=True, lstrip=True)),
    "added, normalised with the text": adding(
        _token("Caf\u00c9", normalized=True), build=named("gpt-2", normalizer=_CHANGES["Lowercase"])
    ),
    "added, spaces": adding(_token("  "), _token("\n\n"), _token("    ")),
    "added, words": adding(_token("the"), _token(" the"), _token("hello")),
    "added, one in another": adding(_token("<ab"), _token("<abc>"), _token("bc>d", special=True)),
    "added, pieces": adding(_token(), _token("<b>", rstrip=True), build=sentence_piece(_SPACES, None, strip=False)),
    "added, unigram": adding(_token(), _token("<b>", lstrip=True), build=unigram(None, _metaspace("always"))),
    # What stands around a prompt.
    "start": around(f"{START} $A"),
    "start and end": around(f"{START} $A {END}"),
    "two at the start": around(f"{END} {START} $A"),
    "end": around(f"$A {END}"),
}  # fmt: skip


def save(name: str, folder: Path, **settings: Any) -> Path:
    """Write the tokenizer and the files beside it into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = KINDS[name]()
    tokenizer.save(str(folder / "tokenizer.json"))
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    (folder / "config.json").write_text(json.dumps({"bos_token_id": start, "eos_token_id": end, "vocab_size": VOCAB}))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    return folder


_PIECES = [
    *(
        " ",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "the",
        "The ",
        "'s",
        "'LL",
        "don't",
        "l'été",
        "x's",
        "{}",
        "->",
    ),
    *(
        "1",
        "12",
        "123",
        "1234",
        "1234567",
        "٣٤",
        "½",
        "中文字",
        "テスト",
        "한국",
        "ñandú",
        "Ωμέγα",
        "\u01c5",
        "\u0e20\u0e32",
    ),
    *("\u0939\u093f\u0928\u094d\u0926\u0940", "🦙", "\U0001f468\u200d\U0001f469", "e\u0301", "o\u0308", "\u00a0"),
    *("\u200b", "\u3000", "\ufb01", "\u212b", "▁", "\u0120", "<0x0A>", "``", "_", "...", "$+=^~|`", "f(x):", "\x00"),
    *("\u0e20\u0e32", "->", "\x7f", "\ufeff", "camelCase", "HTTPServer", "own", "hello", "Caf\u00e9"),
]


def random_texts(count: int, tokenizer: Tokenizer, seed: int = 1) -> Iterator[str]:
    """Draw words, digits, spaces, scripts, controls, characters that no vocabulary has, and added tokens."""
    draw = random.Random(seed)
    pieces = [*_PIECES]
    pieces += [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    words = list(tokenizer.get_vocab())
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x900, 0xE80), (0x2000, 0x2100), (0x3000, 0xD7FF)]
    for number in range(count):
        match number % 4:
            case 0 | 1:
                yield "".join(draw.choices(pieces, k=draw.randint(1, 12)))
            case 2:
                yield " ".join(draw.choices(words, k=draw.randint(1, 6)))
            case _:
                yield "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randint(1, 16)))
