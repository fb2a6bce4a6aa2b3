"""What a conversion says of text is compared with its source before it has its name, and every companion goes along."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.convert.dense_models import MODELS
from tests.convert.merging.merge_recipes import make_models, recipe, save_tokenizer
from tests.convert.merging.test_merge_adapters import DOWN, QUERY, save_adapter

from moekit.convert import merge, split, text_proof, upcycle
from moekit.convert.dense_to_moe import dense_conversion
from moekit.convert.merging import merge_conversion
from moekit.convert.verbs import plan_merge
from moekit.core.errors import MoekitError
from moekit.models import Decoder, load
from moekit.models.companions import companions

pytestmark = pytest.mark.usefixtures("quick")

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}"
BESIDE = {
    "chat_template.json": json.dumps({"chat_template": TEMPLATE}),
    "chat_template.jinja": TEMPLATE,
    "additional_chat_templates/tools.jinja": TEMPLATE,
    "tool_use.jinja": TEMPLATE,
    "generation_config.json": json.dumps({"eos_token_id": [2, 7], "temperature": 0.5}),
    "tokenizer.model": "pieces",
    "tokenizer.model.v3": "pieces",
    "tokenizer.model.v7m1": "pieces",
    "sentencepiece.bpe.model": "pieces",
    "tekken.json": "{}",
    "words.tiktoken": "IQ== 0",
    "vocab.txt": "a",
    "merges.txt": "a b",
    "LICENSE": "as it is",
    "NOTICE.txt": "as it is",
}
LEFT = {"modeling_own.py": "raise", "README.md": "of the source", "optimizer.bin": "?", "training_args.bin": "?"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A dense model with a tokenizer and everything that may lie beside it."""
    folder = tmp_path / "source"
    Decoder(MODELS["llama"].model_copy(update={"vocab_size": 259})).save(folder)
    save_tokenizer(folder)
    for name, text in (BESIDE | LEFT).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": 1, "eos_token_id": 2}))
    return folder


def merged(folder: Path, out: Path) -> object:
    experts = [{"source_model": str(folder)}] * 2
    return merge({"base_model": str(folder), "gate_mode": "random", "experts": experts}, out)


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "upcycle": upcycle,
    "split": lambda folder, out: split(folder, out, method="random"),
    "merge": merged,
    "save": lambda folder, out: load(folder).save(out),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("verb", VERBS)
def test_companions_go_along(source: Path, verb: str, tmp_path: Path) -> None:
    VERBS[verb](source, tmp_path / "out")
    expected = {*BESIDE, "tokenizer.json", "tokenizer_config.json"}
    assert {str(file.relative_to(source)) for file in companions(source)} == expected
    for name in expected:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    for name, text in LEFT.items():
        assert not (tmp_path / "out" / name).exists() or (tmp_path / "out" / name).read_text() != text


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a companion is lost": (lambda out: (out / "tokenizer.model.v3").unlink(), r"tokenizer\.model\.v3"),
    "a companion is another": (lambda out: (out / "merges.txt").write_text("b a"), r"merges\.txt"),
    "another start": (lambda out: change_json(out / "config.json", bos_token_id=5), "token before a text is 5"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("verb", ["upcycle", "split", "merge"])
def test_a_result_that_takes_text_otherwise_is_removed(
    source: Path, verb: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, said = DAMAGES[damage]
    real = text_proof.check_text

    def spoilt(folder: Path, result: Path, vocab_size: int) -> None:
        spoil(result)
        real(folder, result, vocab_size)

    for module in (dense_conversion, merge_conversion):
        monkeypatch.setattr(module, "check_text", spoilt)
    with pytest.raises(MoekitError, match=rf"{said}.*What was written was removed"):
        VERBS[verb](source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


FOLDERS_THAT_DIFFER: dict[str, tuple[Callable[[Path], object], str]] = {
    "a special token": (lambda out: change_json(out / "tokenizer_config.json", eos_token="<unk>"), "end an answer"),
    "the ends of answers": (lambda out: change_json(out / "generation_config.json", eos_token_id=9), "end an answer"),
    "words": (
        lambda out: change_json(out / "tokenizer.json", normalizer={"type": "Lowercase"}),
        "list of tokens of '[^']+'",
    ),
    "what stands around a prompt": (
        lambda out: change_json(
            out / "tokenizer.json",
            post_processor={"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]},
        ),
        "list of tokens of ''",
    ),
    "the template": (lambda out: (out / "chat_template.jinja").write_text(TEMPLATE + " "), "chat template"),
    "no tokenizer": (lambda out: (out / "tokenizer.json").write_text("{}"), "token before a text is None"),
}


@pytest.mark.parametrize("case", FOLDERS_THAT_DIFFER)
def test_what_differs_is_named(source: Path, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a companion written anew and not copied, the difference would still be found."""
    upcycle(source, tmp_path / "out")
    text_proof.check_text(source, tmp_path / "out", 259)
    change, said = FOLDERS_THAT_DIFFER[case]
    change(tmp_path / "out")
    monkeypatch.setattr(text_proof, "companions", lambda folder: [])
    with pytest.raises(MoekitError, match=said) as caught:
        text_proof.check_text(source, tmp_path / "out", 259)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_nobody_can_read_stops_nothing(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    upcycle(source, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


EXPERTS: dict[str, tuple[dict[str, int], dict[str, Any], list[str]]] = {
    "attention alone": ({QUERY: 4}, {}, ["changes no feed-forward network"]),
    "attention, too": ({QUERY: 4, DOWN: 4}, {}, ["1 of 2 changes are left out"]),
    "networks alone": ({DOWN: 4}, {}, []),
    "attention that is averaged": ({QUERY: 4}, {"backbone": "average"}, []),
}


@pytest.mark.parametrize("case", EXPERTS)
def test_what_of_an_adapter_no_expert_has(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")
    folder = make_models(tmp_path, count=2)
    ranks, changes, said = EXPERTS[case]
    save_adapter(tmp_path / "lora", ranks)
    data = recipe(folder, gate_mode="random", **changes)
    data["experts"][1]["source_model"] = f"{folder / 'e1'}+{tmp_path / 'lora'}"
    found = [warning for warning in plan_merge(data).warnings if "adapter" in warning]
    assert len(found) == len(said)
    for warning, part in zip(found, said, strict=True):
        assert part in warning
        assert f"experts[1].source_model: the adapter {tmp_path / 'lora'}" in warning
    with caplog.at_level(logging.WARNING):
        merge(data, tmp_path / "out")
    assert [text for text in caplog.messages if "adapter" in text] == [f"Note: {warning}" for warning in found]


def test_an_expert_whose_networks_are_the_base_s_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fine-tune of attention alone, as a whole model."""
    pytest.importorskip("transformers")
    folder = make_models(tmp_path, count=2)
    model = load(folder / "base")
    assert isinstance(model, Decoder)
    with torch.no_grad():
        model.layers[0].attention.output.weight.add_(1.0)  # type: ignore[operator, union-attr]
    model.save(tmp_path / "tuned")
    data = recipe(folder, gate_mode="random")
    data["experts"][1]["source_model"] = str(tmp_path / "tuned")
    with caplog.at_level(logging.WARNING):
        merge(data, tmp_path / "out")
    (said,) = [text for text in caplog.messages if "networks of" in text]
    assert said.startswith("Note: experts[1].source_model: the feed-forward networks of ")
    assert f"{tmp_path / 'tuned'} are those of {folder / 'base'}" in said


def test_numbers_that_a_type_cannot_hold_are_not_written(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = make_models(tmp_path)
    model = load(folder / "e0")
    assert isinstance(model, Decoder)
    with torch.no_grad():
        model.layers[1].feed_forward.down.weight[0, 0] = 1e6  # type: ignore[index, union-attr]
    model.save(tmp_path / "large")
    data = recipe(folder, gate_mode="random", dtype="float16")
    data["experts"][0]["source_model"] = str(tmp_path / "large")
    with pytest.raises(MoekitError, match=r"layers\.1\..*too large for float16; take another dtype"):
        merge(data, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    merge(data | {"dtype": "bfloat16"}, tmp_path / "out")


def test_an_expert_with_other_tokens_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = make_models(tmp_path)
    for name in ("e0", "e1"):
        save_tokenizer(folder / name)
    data = recipe(folder, 3, gate_mode="random")
    assert plan_merge(data).warnings == []
    tokenizer = json.loads((folder / "e1/tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "e1/tokenizer.json").write_text(json.dumps(tokenizer))
    (said,) = plan_merge(data).warnings
    assert re.match(
        rf"experts\[1\]\.source_model: {re.escape(str(folder / 'e1'))} takes '[^']*[ab][^']*' for other tokens", said
    )
    (folder / "e1/tokenizer.json").write_text("{}")
    assert plan_merge(data).warnings == []


@pytest.mark.parametrize("place", ["norm.weight", "embedding.weight", "layers.0.attention.output.weight"])
def test_a_source_that_computes_no_numbers_is_not_proven(place: str, tmp_path: Path) -> None:
    """What is copied as it is, and would compare as no larger than nothing."""
    torch.manual_seed(0)
    model = Decoder(MODELS["llama"])
    with torch.no_grad():
        model.get_parameter(place).fill_(float("nan"))
    model.save(tmp_path / "source")
    for options in ({}, {"method": "noise"}):
        with pytest.raises(MoekitError, match=r"source computes what is no number"):
            upcycle(tmp_path / "source", tmp_path / "out", **options)  # type: ignore[arg-type]
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_whose_numbers_are_none_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Decoder(MODELS["llama"])
    with torch.no_grad():
        model.layers[1].feed_forward.down.weight[3, 5] = float("nan")  # type: ignore[index, union-attr]
    model.save(tmp_path / "source")
    with pytest.raises(MoekitError, match=r"not finite.*a source is damaged"):
        upcycle(tmp_path / "source", tmp_path / "out", method="noise")
