"""Round trips between transformers and moekit, by way of folders: what the tests of all families do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from moekit.models import LanguageModel, load


def save_theirs(model: Any, folder: Path, *, mean_of_vectors: float = 0.5, **options: Any) -> Path:
    """A folder as transformers writes it, every weight drawn anew so that none is all zeros or ones.

    mean_of_vectors: of norms and biases; 0 keeps the scale of norms that multiply by 1 + w, of which many in a row
    would else make a model that enlarges rounding beyond what is compared.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            mean = mean_of_vectors if parameter.dim() == 1 else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.3 + mean)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
    model.eval().save_pretrained(folder, **options)
    return folder


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    return found


def check_logits(theirs: Tensor, ours: Tensor) -> None:
    assert theirs.shape == ours.shape
    assert theirs.std() > 1e-3
    assert (theirs - ours).abs().max() <= 1e-5 * theirs.std()


def check_round_trip(
    theirs: Any,
    folder: Path,
    logits: Callable[[LanguageModel], Tensor],
    expected: Tensor,
    alone_as: type[Any] | None = None,
) -> None:
    """Their folder → moekit → a folder with the same names and bits, which transformers reads as the same model.

    alone_as: the class that reads what is saved from our configuration alone, by default theirs.
    """
    alone_as = alone_as or type(theirs)
    ours = load(folder)
    with torch.no_grad():
        check_logits(expected, logits(ours))
    again = folder.parent / "again"
    ours.save(again)
    before, after = stored_tensors(folder), stored_tensors(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name
    # Without what the folder said: from our configuration alone.
    ours.origin = None
    alone = folder.parent / "alone"
    ours.save(alone)
    assert json.loads((alone / "config.json").read_text())["model_type"] == alone_as.config_class.model_type
    assert load(alone).config == load(again).config
    for result, reader in ((again, type(theirs)), (alone, alone_as)):
        back, info = reader.from_pretrained(result, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        for (name, a), b in zip(theirs.named_parameters(), back.parameters(), strict=True):
            assert torch.equal(a, b), name
