"""The conversions from Python, each in one call, and merges of families that mergekit has no format for."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.convert.dense_models import MODELS, TOKENS, difference, expected_logits, logits, model_type, save
from tests.convert.merging.merge_recipes import make_models, recipe
from tests.families.round_trips import stored_tensors

from moekit.checkpoint.gguf import GGUFFile
from moekit.convert import merge, quantize, split, upcycle
from moekit.convert.conversion import Refused
from moekit.convert.verbs import plan_merge, plan_quantize, plan_split, plan_upcycle
from moekit.core.errors import MoekitError, UsageError
from moekit.core.progress import Advanced, Finished, ProgressEvent, Started
from moekit.models import Decoder

pytestmark = pytest.mark.usefixtures("quick")


def drawn(folder: Path, name: str, seed: int, **changes: Any) -> Path:
    """Save a dense model of that name with other weights than `save` gives it."""
    torch.manual_seed(seed)
    model = Decoder(MODELS[name].model_copy(update=changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) * 0.3
    model.save(folder)
    return folder


def test_merge_in_one_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From keys and values or a file alike: a typed result, progress by events, messages by logging."""
    pytest.importorskip("transformers")
    folder = make_models(tmp_path)
    data = recipe(folder, gate_mode="fitted")
    events: list[ProgressEvent] = []
    (tmp_path / "text.txt").write_text("def f(x): return x\n" * 30)
    with caplog.at_level(logging.INFO, logger="moekit"):
        text = [str(tmp_path / "text.txt")]
        report = merge(data, tmp_path / "out", train_router=text, train_steps=3, progress=events.append)
    assert (report.architecture, report.gate_mode, report.experts) == ("Mixtral", "fitted", 2)
    assert report.routing is not None
    assert report.accuracy == report.routing.accuracy
    assert report.router_training is not None
    assert report.router_training.steps == 3
    assert report.router_training.tensors_unchanged == len(stored_tensors(tmp_path / "out")) - 2
    assert [event.task for event in events if isinstance(event, Started)] == [
        "Training the routers",
        f"Writing {tmp_path / 'out'}",
    ]
    assert sum(isinstance(event, Finished) for event in events) == 2
    written = [event for event in events if isinstance(event, Advanced)][-1]
    assert written.done == written.total == sum(file.stat().st_size for file in (tmp_path / "out").glob("model*"))
    assert "Making gates (fitted)" in caplog.messages
    (tmp_path / "merge.json").write_text(json.dumps(data))
    merge(str(tmp_path / "merge.json"), str(tmp_path / "again"))
    assert plan_merge(data).verify(tmp_path / "again") == len(stored_tensors(tmp_path / "again"))
    with pytest.raises(MoekitError, match=r"gate\.weight' is not what the merge makes"):
        plan_merge(data).verify(tmp_path / "out")  # its routers were trained


def test_every_problem_of_a_merge_is_in_one_error(tmp_path: Path) -> None:
    data = {"base_model": "/nowhere/base", "experts": [{"source_model": "/nowhere/a", "positive_prompts": ["x"]}]}
    with pytest.raises(Refused) as caught:
        merge(data | {"experts_per_token": 3}, tmp_path / "out")
    assert len(caught.value.problems) == 3
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="moekit merge: gate_mod: there is no such key"):
        merge(data | {"gate_mod": "hidden"}, tmp_path / "out")


WRITTEN_AS = {
    "gpt2": "moekit_decoder",
    "gpt_neo": "moekit_decoder",
    "falcon": "moekit_decoder",
    "falcon-rw": "moekit_decoder",
    "scaled": "moekit_decoder",
    "latent": "moekit_decoder",
}


def of_copies(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of twice the same model."""
    experts = [{"source_model": str(folder)}, {"source_model": str(folder)}]
    return {"base_model": str(folder), "experts": experts, "gate_mode": "random"} | changes


@pytest.mark.parametrize("name", WRITTEN_AS)
def test_families_that_have_no_format_of_mergekit_s(dense: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Copies of one model compute what it does, biases and all; with another model's networks they do not."""
    report = merge(of_copies(dense[name]), tmp_path / "same")
    assert report.architecture == f"moekit ({WRITTEN_AS[name]})"
    assert model_type(tmp_path / "same") == WRITTEN_AS[name]
    assert difference(expected_logits(dense[name]), logits(tmp_path / "same", TOKENS)[0]) <= 1e-5
    other = of_copies(dense[name])
    other["experts"][1]["source_model"] = str(drawn(tmp_path / "other", name, 5))
    merge(other, tmp_path / "other-merged")
    assert difference(expected_logits(dense[name]), logits(tmp_path / "other-merged", TOKENS)[0]) > 1e-2


def test_each_expert_of_gpt_2_is_its_model_s_network(dense: dict[str, Path], tmp_path: Path) -> None:
    """Matrices that are stored transposed, biases, an average of the rest, and a scale of what an expert writes."""
    data = of_copies(dense["gpt2"], backbone="average")
    data["experts"][1] |= {"source_model": str(drawn(tmp_path / "b", "gpt2", 5)), "residual_scale": 0.5}
    merge(data, tmp_path / "out")
    out = stored_tensors(tmp_path / "out")
    models = [stored_tensors(folder) for folder in (dense["gpt2"], tmp_path / "b")]
    for expert, (model, scale) in enumerate(zip(models, (1.0, 0.5), strict=True)):
        experts, theirs = (
            "layers.1.feed_forward.experts.",
            {name.removeprefix("transformer."): model[name] for name in model},
        )
        assert torch.equal(out[experts + "gate_up_EGD"][expert], theirs["h.1.mlp.c_fc.weight"].t())
        assert torch.equal(out[experts + "gate_up_bias_EG"][expert], theirs["h.1.mlp.c_fc.bias"])
        assert torch.equal(out[experts + "down_EDF"][expert], theirs["h.1.mlp.c_proj.weight"].t() * scale)
        assert torch.equal(out[experts + "down_bias_ED"][expert], theirs["h.1.mlp.c_proj.bias"] * scale)
    name = next(name for name in models[0] if name.endswith("wte.weight"))
    torch.testing.assert_close(out["embedding.weight"], (models[0][name] + models[1][name]) / 2)


@pytest.mark.parametrize("name", ["gpt2", "falcon"])
def test_gates_of_prompts_for_every_family(name: str, tmp_path: Path) -> None:
    """mergekit's arithmetic is for Llama's shape, and says so; ours runs every decoder, here one of bytes."""
    base = drawn(tmp_path / "base", name, 1, vocab_size=256)
    data = of_copies(base, gate_mode="fitted")
    for expert, prompts in zip(data["experts"], (["aaaa aaab", "abaa"], ["zzz yyzz", "yzzy"]), strict=True):
        expert["positive_prompts"] = prompts
    report = merge(data, tmp_path / "out")
    assert report.accuracy is not None
    assert min(report.accuracy) > 0.7
    with pytest.raises(Refused, match=r"gate_mode: hidden is mergekit's.*take router_input, fitted"):
        plan_merge(data | {"gate_mode": "hidden"})


def test_a_format_is_asked_for_by_name(tmp_path: Path) -> None:
    """What no format of mergekit's can say of a Llama, moekit's own can: biases of feed-forward networks."""
    folder = save(tmp_path, "llama-with-biases")
    with pytest.raises(Refused, match=r"mlp_bias.*architecture: moekit has"):
        plan_merge(of_copies(folder))
    merge(of_copies(folder, architecture="moekit"), tmp_path / "out")
    assert difference(expected_logits(folder), logits(tmp_path / "out", TOKENS)[0]) <= 1e-5


def test_upcycle_split_and_quantize_in_one_call(dense: dict[str, Path], tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    upcycled = upcycle(dense["llama"], tmp_path / "moe", experts=4, seed=3, progress=events.append)
    assert upcycled.exact
    assert upcycled.model_type == "mixtral"
    assert isinstance(events[-1], Finished)
    assert plan_upcycle(dense["llama"], {"experts": 4, "seed": 3}).verify(tmp_path / "moe").relative <= 1e-5
    parts = split(dense["gpt2"], tmp_path / "parts", experts=4, top_k=4, method="random")
    assert parts.exact
    assert plan_split(dense["gpt2"], {"experts": 4, "top_k": 4, "method": "random"}).plan(tmp_path / "parts").problems
    with pytest.raises(Refused) as caught:
        upcycle(dense["llama"], tmp_path / "no", granularity=5, layers=(0, 7, 9))
    assert len(caught.value.problems) == 3


def test_quantize_and_its_proof(tmp_path: Path) -> None:
    source = drawn(tmp_path / "source", "llama", 1, vocab_size=256)
    report = quantize(source, tmp_path / "m.gguf", "q8_0")
    assert report.output_bytes == (tmp_path / "m.gguf").stat().st_size
    plan = plan_quantize(source, "q8_0")
    assert plan.verify(tmp_path / "m.gguf") == sum(report.tensors.values())
    last = list(GGUFFile(tmp_path / "m.gguf").tensors)[-1]
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    content[-64] ^= 1
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(MoekitError, match=f"'{last}' is not what quantising"):
        plan.verify(tmp_path / "m.gguf")
    with pytest.raises(Refused, match=r"no type 'q4_z' to write; did you mean 'q4_"):
        quantize(source, tmp_path / "n.gguf", "q4_z")
