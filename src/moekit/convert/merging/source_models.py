"""The models of a merge: opened, and checked against each other, without reading a weight."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from moekit.checkpoint.gguf import is_gguf
from moekit.checkpoint.lora import open_adapter
from moekit.config import AttentionConfig, DenseConfig
from moekit.convert.merging.merge_config import MergeConfig, Reference
from moekit.convert.verify import first_difference
from moekit.core.errors import MoekitError, UsageError
from moekit.data.probe_texts import probe_texts
from moekit.data.tokenizers import TOKENIZER, FileTokenizer
from moekit.models.load_model import find
from moekit.models.stored_model import StoredModel, dense_of


def open_models(recipe: MergeConfig, problems: list[str]) -> tuple[StoredModel | None, list[StoredModel | None]]:
    """Open the base model and those of all experts, the routed ones first; each model once.

    What cannot be opened is None, and a problem that names its key in the file.
    """
    opened: dict[str, StoredModel | None] = {}
    wanted = [("base_model", recipe.base_model)]
    wanted += [(f"{recipe.key(index)}.source_model", one.source_model) for index, one in enumerate(recipe.all_experts)]
    for key, reference in wanted:
        if str(reference) in opened:
            continue
        try:
            opened[str(reference)] = open_model(reference)
        except MoekitError as error:
            opened[str(reference)] = None
            problems.append(f"{key}: {reference} cannot be merged: {error}")
    return opened[str(recipe.base_model)], [opened[str(one.source_model)] for one in recipe.all_experts]


def open_model(reference: Reference) -> StoredModel:
    """Find a model and its adapter and check all that can be known of them from headers and settings.

    Raises UsageError where it is not there, MoekitError where it is damaged or has experts already.
    """
    folder = find(reference.model)
    if is_gguf(folder):
        raise UsageError(f"{folder} is a GGUF file; a merge takes the folders of the models that it was made from.")
    adapter = None
    if reference.lora is not None:
        if not Path(reference.lora).is_dir():
            raise UsageError(
                f"There is no folder {reference.lora!r} with a LoRA adapter; download it and name its folder."
            )
        adapter = open_adapter(Path(reference.lora))
    model = StoredModel(folder, adapter)
    if not all(isinstance(layer, DenseConfig) for layer in model.config.feed_forwards):
        raise MoekitError("it is a mixture of experts already; take dense models.")
    return model


def difference(recipe: MergeConfig, expert: StoredModel, base: StoredModel) -> str | None:
    """Say what keeps `expert` from being merged with `base`, as `key is 3, and BASE has 4`; None where they fit."""
    ours, theirs = _facts(expert), _facts(base)
    for key, mine in ours.items():
        if mine != theirs.get(key):
            return f"{key} is {mine}, and {recipe.base_model} has {theirs.get(key)}"
    for name in {**base.shapes, **expert.shapes}:
        used = recipe.backbone == "average" or ".feed_forward." in name
        shapes = [list(model.shapes[name].shape) if name in model.shapes else None for model in (expert, base)]
        if used and shapes[0] != shapes[1]:
            return f"{name} is {shapes[0]}, and {recipe.base_model} has {shapes[1]}"
    return None


def adapters_outside_experts(recipe: MergeConfig, experts: Sequence[StoredModel]) -> list[str]:
    """Say which adapters of experts change what no expert is made of, so that the merge has nothing of it."""
    found = []
    for index, (one, model) in enumerate(zip(recipe.all_experts, experts, strict=True)):
        averaged = recipe.backbone == "average" and index < len(recipe.experts)
        touched, outside = _touched(model)
        if averaged:
            continue
        where = f"{recipe.key(index)}.source_model: the adapter {one.source_model.lora}"
        if outside and len(outside) == len(touched):
            found.append(
                f"{where} changes no feed-forward network ({outside[0]} …), so this expert is {one.source_model.model} "
                "without it; train one on feed-forward networks, or merge it into the base model."
            )
        elif outside:
            found.append(
                f"{where} changes more than feed-forward networks ({outside[0]} …), which alone become an expert; "
                f"{len(outside)} of {len(touched)} changes are left out."
            )
    return found


def _touched(model: StoredModel) -> tuple[list[str], list[str]]:
    """Give the stored tensors that the adapter changes, and those of them that are of no feed-forward network."""
    adapter = model.adapter
    touched = [entry for entry in model.layout if adapter is not None and adapter.touches(entry.name)]
    outside = [entry for entry in touched if not any(".feed_forward." in part.ours for part in entry.parts)]
    return [entry.name for entry in touched], [entry.name for entry in outside]


def other_tokenizers(recipe: MergeConfig, base: StoredModel, experts: Sequence[StoredModel]) -> Iterator[str]:
    """Say which models take a text for other tokens than the base, whose tokenizer the merge has."""
    known = {base.folder}
    for index, model in enumerate(experts):
        files = [folder / TOKENIZER for folder in (base.folder, model.folder)]
        if model.folder in known or not all(file.is_file() for file in files):
            continue
        known.add(model.folder)
        try:
            ours, theirs = (FileTokenizer(file.parent, base.config.vocab_size) for file in files)
        except MoekitError:  # told where it is needed, which that of an expert is not
            continue
        text = next((text for text in probe_texts(ours) if ours.encode(text) != theirs.encode(text)), None)
        if text is not None:
            yield (
                f"{recipe.key(index)}.source_model: {model.folder} takes {text!r} for other tokens than "
                f"{recipe.base_model}, whose tokenizer the merge has; its expert was trained on others."
            )


def unchanged_experts(recipe: MergeConfig, base: StoredModel, experts: Sequence[StoredModel]) -> Iterator[str]:
    """Say which experts are the base's networks though they are of another model; reads weights up to a difference."""
    known = {str(recipe.base_model)}
    for index, (one, model) in enumerate(zip(recipe.all_experts, experts, strict=True)):
        if str(one.source_model) in known:
            continue
        known.add(str(one.source_model))
        touched, outside = _touched(model)
        if touched and touched == outside:  # told by the plan
            continue
        names = (name for name in model.shapes if ".feed_forward." in name)
        if first_difference(model, base, names) is None:
            yield (
                f"{recipe.key(index)}.source_model: the feed-forward networks of {one.source_model} are those of "
                f"{recipe.base_model}, so this expert adds nothing; what was trained lies elsewhere in the model."
            )


def _facts(model: StoredModel) -> dict[str, object]:
    """What two models have to have in common, by the names that config.json has for it."""
    config, layers = model.config, range(len(model.config.layers))
    networks = [dense_of(config, layer) for layer in layers]
    facts: dict[str, object] = {
        "model_type": model.family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.layers),
        "intermediate_size": _one([network.width for network in networks]),
        "hidden_act": _one([network.activation for network in networks]),
    }
    attentions = [layer.attention for layer in config.layers if isinstance(layer.attention, AttentionConfig)]
    if attentions:
        facts["num_attention_heads"] = _one([attention.heads for attention in attentions])
        facts["num_key_value_heads"] = _one([attention.kv_heads for attention in attentions])
        facts["head_dim"] = _one([attention.head_width for attention in attentions])
    return facts


def _one(values: Sequence[object]) -> object:
    return values[0] if len(set(values)) == 1 else list(values)
