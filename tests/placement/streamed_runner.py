"""A model whose experts stay on disk, with so many places a layer; without torch, for processes of their own."""

from pathlib import Path
from typing import Any

from moekit.checkpoint.gguf import GGUFTensor
from moekit.families.gguf import GGUFModel
from moekit.inference.native_runner import NativeRunner
from moekit.kernels.native.expert_streaming import DirectReader, ExpertStreaming
from moekit.kernels.packed import Bytes
from moekit.placement.model_memory import model_memory


def streamed(path: Path, **options: Any) -> NativeRunner:
    """A runner with so many places a layer."""
    stored = GGUFModel(path)
    memory = model_memory(stored)
    places = options.pop("places")
    streaming = ExpertStreaming(
        files=stored.file.paths,
        experts=[() if layer is None else layer.spans for layer in memory.layers],
        places=[places if layer else 0 for layer in memory.layers],
        **options,
    )
    readers = [DirectReader(path) for path in stored.file.paths]

    def read(tensor: GGUFTensor) -> Bytes:
        return readers[tensor.part].read(tensor.start, tensor.size).reshape(tensor.rows, -1)

    weights = stored.weights([index for index, layer in enumerate(memory.layers) if layer], read)
    return NativeRunner(stored.config, weights, None, streaming)
