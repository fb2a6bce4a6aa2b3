"""Decoders from GGUF files, as modules: every weight is unpacked to numbers."""

from collections.abc import Callable
from pathlib import Path

import torch

from moekit.checkpoint.read_weights import check_weights, read_weights
from moekit.checkpoint.unpacked_gguf import unpacked_tensors
from moekit.families import Settings, describe
from moekit.families.gguf import GGUFModel
from moekit.models.decoder import Decoder
from moekit.models.folder import allocate, own_tensors
from moekit.models.read_folder import StoredCheckpoint, counted
from moekit.nn.meta import on_meta

_TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def open_gguf(path: Path) -> StoredCheckpoint:
    """Open the decoder in a GGUF file as one in a folder of the family that it would be written as.

    Raises:
        MoekitError: where the file is damaged, of an architecture that moekit does not have, or not the model that its
            metadata describes.
    """
    stored = GGUFModel(path)
    with on_meta():
        model = Decoder(stored.config)
    tensors = unpacked_tensors(stored.file, {entry.name for entry in stored.layout})
    # On the meta device: a file that lies about sizes must not make us allocate them.
    check_weights(own_tensors(model), stored.layout, tensors)
    family, settings = describe(stored.config)
    ids = {ours: stored.file.metadata.get(f"tokenizer.ggml.{theirs}") for ours, theirs in _TOKEN_IDS.items()}
    return StoredCheckpoint(
        family=family,
        config=stored.config,
        settings=Settings(settings | {name: id_ for name, id_ in ids.items() if id_ is not None}, path),
        model=model,
        layout=stored.layout,
        tensors=tensors,
    )


def load_gguf(
    path: Path, dtype: torch.dtype = torch.float32, on_bytes: Callable[[int, int], None] | None = None
) -> Decoder:
    """Load the decoder in a GGUF file, in evaluation mode.

    Args:
        path: the file.
        dtype: the type of its weights.
        on_bytes: called with the bytes of numbers that were read and those there are to read.

    Raises:
        MoekitError: as `open_gguf` does.
    """
    stored = open_gguf(path)
    model = stored.model
    assert isinstance(model, Decoder)
    allocate(model, dict.fromkeys(own_tensors(model), dtype))
    on_each = counted(on_bytes, stored.layout, stored.tensors)
    read_weights(own_tensors(model), stored.layout, stored.tensors, on_bytes=on_each)
    return model.eval()
