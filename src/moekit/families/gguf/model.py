"""A decoder that lies in a GGUF file: its configuration, and its weights where they are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFFile, GGUFTensor
from moekit.checkpoint.layout import Stored
from moekit.config import ModelConfig
from moekit.core.errors import MoekitError
from moekit.families.gguf.architectures import ARCHITECTURES, Contents, read_config
from moekit.families.gguf.gguf_weights import GGUFWeights, TensorSource
from moekit.families.gguf.rope_metadata import FACTORS
from moekit.families.gguf.tensors import layout
from moekit.kernels.native.weights import DecoderWeights
from moekit.kernels.packed import Bytes

# Old files hold what follows from the metadata.
_IGNORED = (FACTORS, ".rope_freqs.weight", ".attn_rot_embd.weight")


class GGUFModel:
    """A model in a GGUF file; no weight is read.

    Attributes:
        config: our configuration of it.
        layout: its tensors as views of our parameters.

    Raises:
        MoekitError: where its architecture is not known or its tensors are not those that its metadata describes.
    """

    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        shapes = {name: tensor.shape for name, tensor in self.file.tensors.items()}
        factors = self.file.numbers(FACTORS).flatten().tolist() if FACTORS in self.file else None
        self.config: ModelConfig = read_config(self.file.metadata, Contents(shapes=shapes, rope_factors=factors))
        self.architecture = ARCHITECTURES[self.file.metadata.get_as(str, "general.architecture")]
        _check_number_of_layers(self.file, len(self.config.layers))
        self.layout: list[Stored] = layout(self.architecture, self.config, lambda name: name in self.file)
        self._check_names()

    @property
    def converted(self) -> dict[str, list[str]]:
        """Names of tensors by their type, of those types that are not computed with as they are."""
        found: dict[str, list[str]] = {}
        for tensor in self.file.tensors.values():
            if tensor.code not in PACKED_TYPES and not tensor.name.endswith(_IGNORED):
                found.setdefault(tensor.type.name, []).append(tensor.name)
        return found

    def weights(self, source: TensorSource | None = None) -> DecoderWeights:
        """Give all weights; raises MoekitError where a shape is not what the metadata says.

        Matrices of `converted` types become copies in bf16; all others are what `source` gives.

        Args:
            source: gives the bytes of tensors of one type and width, one under the other, (rows, bytes of a row); by
                default views of the file, and copies of several tensors that make one matrix.
        """
        weights = GGUFWeights(self.file, self.config, source or self.mapped)
        return weights.all(interleaved=self.architecture.interleaved)

    def mapped(self, tensors: Sequence[GGUFTensor]) -> Bytes:
        """Give the bytes of tensors where they lie in the file; of several, a copy."""
        views = [self.file.bytes_of(tensor.name) for tensor in tensors]
        return views[0] if len(views) == 1 else np.concatenate(views)

    def _check_names(self) -> None:
        names = {entry.name for entry in self.layout}
        for name in names:
            self.file[name]  # raises where it is missing
        extra = [name for name in self.file.tensors if name not in names and not name.endswith(_IGNORED)]
        if extra:
            raise MoekitError(
                f"{self.file.path} holds the tensor {extra[0]!r}, which {self.architecture.name} has no place for."
            )


def _check_number_of_layers(file: GGUFFile, layers: int) -> None:
    """Find at once a count without layers behind it: a layer's tensors are looked for by name."""
    if f"blk.{layers - 1}.attn_norm.weight" not in file:
        raise MoekitError(f"{file.path} lacks the tensor 'blk.{layers - 1}.attn_norm.weight'; it is incomplete.")
