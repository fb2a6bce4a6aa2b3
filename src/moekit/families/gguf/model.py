"""A decoder that lies in a GGUF file: its configuration, and its weights where they are."""

from collections.abc import Callable, Container
from pathlib import Path

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFFile, GGUFTensor
from moekit.checkpoint.layout import Stored
from moekit.config import ModelConfig, MoEConfig
from moekit.core.errors import MoekitError
from moekit.families.gguf.architectures import ARCHITECTURES, Contents, read_config
from moekit.families.gguf.gguf_weights import GGUFWeights
from moekit.families.gguf.rope_metadata import FACTORS
from moekit.families.gguf.tensors import layout
from moekit.kernels.native.expert_streaming import ExpertSpans, FileSpan
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

    def weights(
        self, streamed: Container[int] = (), read: Callable[[GGUFTensor], Bytes] | None = None
    ) -> DecoderWeights:
        """Give all weights; raises MoekitError where a shape is not what the metadata says.

        Matrices are views of the file, but for those of `converted` types, which become copies in bf16, and single
        experts, which are put on end.

        Args:
            streamed: layers whose experts are read elsewhere, by `expert_spans`: their matrices have no numbers here.
            read: gives the bytes of a tensor in memory of their own, (rows, bytes of a row); all matrices are read with
                it but for the embedding where it is not the head, too: of that a token needs a row.
        """
        return GGUFWeights(self.file, self.config, streamed, read).all(interleaved=self.architecture.interleaved)

    def expert_spans(self, index: int) -> list[ExpertSpans] | None:
        """Tell where the experts of a layer lie; None where it has none, or they are of a `converted` type."""
        layer = self.config.layers[index].feed_forward
        if not isinstance(layer, MoEConfig):
            return None
        gates, ups, downs = (
            self._expert_spans(f"blk.{index}.ffn_{part}", layer.experts) for part in ("gate", "up", "down")
        )
        return None if gates is None or ups is None or downs is None else list(zip(gates, ups, downs, strict=True))

    def _expert_spans(self, name: str, experts: int) -> list[FileSpan] | None:
        """Tell where one matrix of each expert lies; None unless all are of one type that is computed with."""
        if (stacked := f"{name}_exps.weight") in self.file:
            tensor = self.file[stacked]
            tensors, size = [tensor], tensor.size // experts
            spans = [FileSpan(tensor.start + expert * size, size, tensor.part) for expert in range(experts)]
        else:
            tensors = [self.file[f"{name}.{expert}.weight"] for expert in range(experts)]
            spans = [FileSpan(tensor.start, tensor.size, tensor.part) for tensor in tensors]
        codes = {tensor.code for tensor in tensors}
        return spans if len(codes) == 1 and codes <= PACKED_TYPES.keys() else None

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
