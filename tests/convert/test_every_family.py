"""The verbs that make mixtures, on every family and guise that is read: they work, or a sentence says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.dense_models import MODELS as DENSE
from tests.families.round_trips import check_logits, save_theirs
from tests.families.test_decoders import CASES, build_theirs, mean_of_vectors
from tests.families.test_whole import MODELS as KINDS
from tests.models.test_read_folder import GUISES
from torch import Tensor

from moekit.config import DenseConfig, ModelConfig
from moekit.convert import merge, split, upcycle
from moekit.core.errors import MoekitError
from moekit.models import Decoder, build, load
from moekit.models.folder import read_config

pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("quick")

TOKENS = torch.randint(0, 37, (2, 12), generator=torch.Generator().manual_seed(0))


def merge_with_itself(folder: Path, out: Path, **options: Any) -> object:
    """Merge a model with itself, which any router leaves the same function."""
    recipe = {"base_model": str(folder), "gate_mode": "random", "experts": [{"source_model": str(folder)}] * 2}
    return merge(recipe | {"architecture": "moekit"}, out, **options)


# Each gives the same function as its source.
VERBS: dict[str, Callable[..., object]] = {
    "upcycle": lambda folder, out, **more: upcycle(folder, out, experts=2, **more),
    "split": lambda folder, out, **more: split(folder, out, experts=2, top_k=2, method="random", **more),
    "merge": merge_with_itself,
}


def logits(folder: Path) -> Tensor:
    model = load(folder)
    assert isinstance(model, Decoder)
    with torch.no_grad():
        return model(TOKENS).float()


def refusal(verb: str, folder: Path, out: Path, **options: Any) -> str:
    """What a verb says that refuses a model: one or two sentences that name it and fit into two lines."""
    with pytest.raises(MoekitError) as caught:
        VERBS[verb](folder, out, **options)
    said = str(caught.value)
    assert folder.name in said
    assert "\n" not in said
    assert len(said.replace(str(folder), "MODEL")) < 200, said
    assert not out.exists()
    return said


@pytest.mark.parametrize("case", CASES)
def test_every_decoder(case: str, tmp_path: Path) -> None:
    """A dense one becomes the same function; of a mixture the dense layers can, and what cannot is said."""
    folder = save_theirs(build_theirs(case), tmp_path / "source", mean_of_vectors=mean_of_vectors(case))
    _, config = read_config(folder)
    assert isinstance(config, ModelConfig)
    dense = tuple(index for index, part in enumerate(config.feed_forwards) if isinstance(part, DenseConfig))
    expected = logits(folder)
    if len(dense) == len(config.layers):
        for verb, run in VERBS.items():
            run(folder, tmp_path / verb)
            check_logits(expected, logits(tmp_path / verb))
        return
    for verb in VERBS:
        assert "mixture" in refusal(verb, folder, tmp_path / verb)
    if dense:
        assert f"({', '.join(map(str, dense))})" in refusal("upcycle", folder, tmp_path / "upcycle")
        upcycle(folder, tmp_path / "rest", experts=2, layers=dense)
        check_logits(expected, logits(tmp_path / "rest"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "moekit_decoder"])
@pytest.mark.parametrize("verb", VERBS)
def test_models_of_other_kinds(kind: str, verb: str, tmp_path: Path) -> None:
    build(KINDS[kind]).save(tmp_path / "source")
    assert f"another kind of model ({KINDS[kind].kind})" in refusal(verb, tmp_path / "source", tmp_path / "out")


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def said_to_be_tied(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


OTHER_GUISES: dict[str, Callable[[Path], None]] = {
    "a wider head": lambda folder: rewritten(
        folder, lambda found: {name: one.float() if name == "lm_head.weight" else one for name, one in found.items()}
    ),
    "wider norms": lambda folder: rewritten(
        folder, lambda found: {name: one.float() if "norm" in name else one for name, one in found.items()}
    ),
    "narrower experts to be": lambda folder: rewritten(
        folder, lambda found: {name: one.half().float() if ".mlp." in name else one for name, one in found.items()}
    ),
    "an old file": as_bin,
    "said to be tied": said_to_be_tied,
} | {
    guise: lambda folder, rename=rename: rewritten(  # type: ignore[misc]
        folder, lambda found: {rename(name): one for name, one in found.items()}
    )
    for guise, rename in GUISES.items()
}


@pytest.mark.parametrize("guise", OTHER_GUISES)
def test_the_same_model_in_another_guise(guise: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    Decoder(DENSE["llama"]).to(torch.bfloat16).save(tmp_path / "source")
    OTHER_GUISES[guise](tmp_path / "source")
    expected = load(tmp_path / "source", dtype=torch.float32)
    assert isinstance(expected, Decoder)
    for verb, run in VERBS.items():
        run(tmp_path / "source", tmp_path / verb)
        result = load(tmp_path / verb, dtype=torch.float32)
        assert isinstance(result, Decoder)
        with torch.no_grad():
            check_logits(expected(TOKENS), result(TOKENS))


def test_packed_experts_are_a_mixture(tmp_path: Path) -> None:
    build_theirs("qwen3-moe").save_pretrained(tmp_path / "packed", save_original_format=False)
    for verb in VERBS:
        assert "mixture" in refusal(verb, tmp_path / "packed", tmp_path / "out")
