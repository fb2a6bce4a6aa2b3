"""The scorer of a GGUF file that the native kernels compute: with the weights that it has, within a memory budget."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from moekit.core.errors import UsageError
from moekit.core.progress import Progress
from moekit.data.gguf_tokenizer import gguf_tokenizer
from moekit.evaluation.score import WindowScorer
from moekit.families.gguf import GGUFModel
from moekit.kernels.native.decoder import Doubles, NativeDecoder
from moekit.placement import MemoryOptions, load_weights

_CHUNK = 512


def native_scorer(stored: GGUFModel, context: int, memory: MemoryOptions, progress: Progress) -> WindowScorer:
    """Load the weights and make the function that gives (nats, tokens, bytes) of a text.

    Raises:
        UsageError: where the model takes fewer tokens than `context`, or does not fit into so much memory.
        MoekitError: where the file cannot be read.
    """
    config = stored.config
    if context > config.context:
        raise UsageError(f"The model's context is {config.context:,} tokens; --context {context:,} is more.")
    tokenizer = gguf_tokenizer(stored.file.metadata, config.vocab_size)
    loaded = load_weights(stored, replace(memory, every_row=True), context, progress)
    decoder = NativeDecoder(config.model_copy(update={"context": context}), loaded.weights, loaded.streaming)
    cache = decoder.new_cache()

    def row_log_prob(row: list[int]) -> Doubles:
        cache.truncate(0)
        # So many are computed at once; in between, signals are seen.
        begins = range(0, len(row) - 1, _CHUNK)
        chunks = [(begin, min(begin + _CHUNK, len(row) - 1)) for begin in begins]
        return np.concatenate([decoder.score(cache, row[begin:end], row[begin + 1 : end + 1]) for begin, end in chunks])

    def log_prob(tokens_BT: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([row_log_prob(row) for row in tokens_BT.tolist()]))

    return WindowScorer(log_prob, tokenizer, context)
