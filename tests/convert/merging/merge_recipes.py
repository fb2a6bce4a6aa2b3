"""Tiny dense models in folders, as transformers writes them, and merges of them: what the tests of merging share."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.families.round_trips import save_theirs

from moekit.convert.conversion import Refused
from moekit.convert.merging.gates import make_gates
from moekit.convert.merging.merge_config import read_merge_config
from moekit.convert.merging.merge_conversion import MergeConversion, MergeOptions, MergeReport, plan_merging
from moekit.convert.merging.merged_model import MergedModel

VOCAB = 259
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PROMPTS = {
    0: ["def f(x):", "import os, sys"],
    1: ["The quick fox", "of a sentence, then"],
    2: ["#include"],
    3: ["12 + 7 = 19"],
}


def make_models(folder: Path, kind: str = "Llama", count: int = 3, dtype: str = "float32", **settings: Any) -> Path:
    """`base`, `e0`, `e1`, ... in the folder, with a tokenizer of words in `base`; weights from a fixed seed."""
    import transformers

    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(**(SHAPE | settings))
    for name in ("base", *(f"e{index}" for index in range(count))):
        model = getattr(transformers, f"{kind}ForCausalLM")(config).to(getattr(torch, dtype))
        save_theirs(model, folder / name)
    save_tokenizer(folder / "base")
    return folder


def save_tokenizer(folder: Path) -> None:
    """Bytes, a start and an end token, as files that every class of transformers reads the same way."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = ("<unk>", "<s>", "</s>")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocab = {text: index for index, text in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": content, **flags} for index, content in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": bytes_,
        "post_processor": None,
        "decoder": bytes_,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def recipe(folder: Path, count: int = 2, **changes: Any) -> dict[str, Any]:
    """A merge of the first experts, as YAML says it; a key that is None is left out."""
    listed: Any = [
        {"source_model": str(folder / f"e{index}"), "positive_prompts": PROMPTS[index]} for index in range(count)
    ]
    data = {"base_model": str(folder / "base"), "experts": listed, "gate_mode": "hidden", "dtype": "float32"} | changes
    return {key: value for key, value in data.items() if value is not None}


def write_recipe(folder: Path, data: dict[str, Any], name: str = "merge.yaml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(data))
    return file


def plan_of(folder: Path, data: dict[str, Any], **options: Any) -> MergeConversion:
    """Plan the merge that the recipe `data` says, which has no problems."""
    return plan_merging(read_merge_config(write_recipe(folder, data)), MergeOptions(**options))


def planned(folder: Path, data: dict[str, Any], **options: Any) -> MergedModel:
    """Give the merged model of a recipe that has no problems, with its gates made."""
    return make_gates(plan_of(folder, data, **options).merged)


def write(merged: MergedModel, out: Path, **options: Any) -> MergeReport:
    """Write a merged model to `out`."""
    return MergeConversion(merged=merged, options=MergeOptions(**options), warnings=[]).run(out)


def problems_of(folder: Path, data: dict[str, Any], **options: Any) -> list[str]:
    """Give what stands in the way of a recipe."""
    try:
        plan_of(folder, data, **options)
    except Refused as error:
        return error.problems
    return []


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixtral": ("Llama", {}, {}),
    "mixtral-from-mistral": ("Mistral", {"sliding_window": None}, {"count": 3}),
    "deepseek": ("Llama", {}, {"architecture": "deepseek"}),
    "deepseek-shared": ("Llama", {}, {"architecture": "deepseek", "shared": False}),
    "qwen2-moe-from-llama": ("Llama", {}, {"shared": True}),
    "qwen2-moe": ("Qwen2", {}, {"shared": True}),
    "qwen3-moe": ("Qwen3", {"head_dim": 12}, {"count": 3}),
}
"""Of each output: the dense models' class and settings, and the merge; `shared`: with prompts or without."""


def case_recipe(folder: Path, case: str, **changes: Any) -> dict[str, Any]:
    """The recipe of one of CASES."""
    asked = dict(CASES[case][2])
    if "shared" in asked:
        # One of the routed experts: mergekit reads no model as a shared expert alone.
        shared: dict[str, Any] = {"source_model": str(folder / "e1")}
        if asked.pop("shared"):
            shared["positive_prompts"] = ["Hello, you"]
        asked["shared_experts"] = [shared]
    return recipe(folder, **(asked | changes))
