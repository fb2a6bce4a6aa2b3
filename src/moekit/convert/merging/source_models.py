"""The models of a merge: opened and checked without reading a weight, then read tensor by tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoint.read_weights import check_weights, memory_of
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.config import AttentionConfig, DenseConfig, ModelConfig
from moekit.convert.merging.lora import Adapter, open_adapter
from moekit.convert.merging.merge_config import Reference
from moekit.convert.storage.streaming_writer import Copy, Made, Piece
from moekit.core.errors import MoekitError, UsageError
from moekit.families import Family, Settings
from moekit.models import build
from moekit.models.folder import layout_of, own_tensors, read_config, read_settings
from moekit.models.load_model import find
from moekit.nn.meta import on_meta

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
NETWORK = ("gate_proj", "up_proj", "down_proj")


def network_name(layer: int, part: str) -> str:
    """The stored name of one matrix of a dense layer's feed-forward network, in all of these families."""
    return f"model.layers.{layer}.mlp.{part}.weight"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dense model, with an adapter or without.

    names: its stored tensors in the order of the family's layout; a copy of tied embeddings only where it is there.
    """

    reference: Reference
    folder: Path
    family: Family
    config: ModelConfig
    settings: Settings
    tensors: StoredTensors
    names: tuple[str, ...]
    adapter: Adapter | None

    @property
    def layer(self) -> DenseConfig:
        """The feed-forward network that every layer has."""
        layer = self.config.feed_forwards[0]
        assert isinstance(layer, DenseConfig)
        return layer

    @property
    def attention(self) -> AttentionConfig:
        """Its attention, which is grouped in all of these families."""
        attention = self.config.layers[0].attention
        assert isinstance(attention, AttentionConfig)
        return attention

    def piece(self, name: str) -> Piece:
        """The stored tensor of that name: its bytes, or computed where the adapter changes it."""
        if not self._changed(name):
            return Copy(self.tensors, name)
        info = self.tensors[name]
        elements = info.size // info.dtype.itemsize
        # In fp32 the product and the sum, beside what is read and what comes out.
        memory = elements * 8 + 2 * info.size
        key = f"lora {self.adapter.folder if self.adapter else ''}"
        return Made(lambda: self.read(name), info.shape, memory, key)

    def read(self, name: str) -> Tensor:
        """The tensor of that name with the adapter, in the type that it is stored in."""
        info = self.tensors[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        self.tensors.read(name, 0, memory_of(tensor))
        return self.adapter.applied(name, tensor) if self.adapter and self._changed(name) else tensor

    def rows(self, name: str, row_N: Sequence[int]) -> Tensor:
        """Rows of a matrix, (N, columns), without reading the others."""
        if self._changed(name):
            return self.read(name)[list(row_N)]
        info = self.tensors[name]
        found = torch.empty(len(row_N), *info.shape[1:], dtype=info.dtype)
        for into, row in zip(found, row_N, strict=True):
            self.tensors.read(name, row * into.nbytes, memory_of(into))
        return found

    def _changed(self, name: str) -> bool:
        return self.adapter is not None and self.adapter.touches(name)


def open_source(reference: Reference) -> Source:
    """Find a model and its adapter and check all that can be known of them from headers and settings.

    Raises UsageError where it is not there, MoekitError where it is damaged or no dense model of Llama's kind.
    """
    folder = find(reference.model)
    settings = read_settings(folder)
    family, config = read_config(folder)
    if family.model_type not in LLAMA_LIKE or not isinstance(config, ModelConfig):
        known = ", ".join(LLAMA_LIKE)
        raise MoekitError(f"{settings.file}: model_type is {family.model_type!r}, and what can be merged is {known}.")
    if any(isinstance(layer, DenseConfig) and layer.bias for layer in config.feed_forwards):
        raise MoekitError(
            f"{settings.file}: mlp_bias is set, and the formats that merges are written in have no biases in experts."
        )
    tensors = StoredTensors.open(folder)
    with on_meta():
        model = build(config)
    layout = layout_of(family, config, model)
    check_weights(own_tensors(model), layout, tensors, ignored=family.ignored)
    adapter = None
    if reference.lora is not None:
        adapter = open_adapter(_adapter_folder(reference.lora))
        adapter.check({name: info.shape for name, info in tensors.items()})
    return Source(
        reference=reference,
        folder=folder,
        family=family,
        config=config,
        settings=settings,
        tensors=tensors,
        names=tuple(entry.name for entry in layout if entry.name in tensors),
        adapter=adapter,
    )


def _adapter_folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {text!r} with a LoRA adapter; download it and name its folder.")
    return folder


def difference(expert: Source, base: Source) -> str | None:
    """What keeps `expert` from being merged with `base`, as `key is 3, and BASE has 4`; None where they fit."""
    ours, theirs = expert.config, base.config
    pairs = {
        "model_type": (expert.family.model_type, base.family.model_type),
        "vocab_size": (ours.vocab_size, theirs.vocab_size),
        "hidden_size": (ours.width, theirs.width),
        "num_hidden_layers": (len(ours.layers), len(theirs.layers)),
        "intermediate_size": (expert.layer.width, base.layer.width),
        "hidden_act": (expert.layer.activation, base.layer.activation),
        "num_attention_heads": (expert.attention.heads, base.attention.heads),
        "num_key_value_heads": (expert.attention.kv_heads, base.attention.kv_heads),
        "head_dim": (expert.attention.head_width, base.attention.head_width),
    }
    for key, (mine, other) in pairs.items():
        if mine != other:
            return f"{key} is {mine}, and {base.reference} has {other}"
    return None
