"""`moekit.evaluate`: how well a model predicts a text, from its folder to the bits per byte, in one call."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from moekit.checkpoint.gguf import is_gguf
from moekit.core.errors import UsageError
from moekit.core.progress import Progress, Task, no_progress
from moekit.data import Document, embedded_documents, read_sources, split_documents
from moekit.evaluation.choose_scorer import LONGEST, scorer_of
from moekit.evaluation.native_scorer import native_scorer
from moekit.evaluation.score import Evaluation, Score, score_documents
from moekit.families.gguf import GGUFModel
from moekit.kernels.native.decoder_description import is_native
from moekit.models import LanguageModel, NGram, check_there, load
from moekit.moe import without_capacity
from moekit.placement import MemoryOptions

_logger = logging.getLogger(__name__)


def evaluate(
    model: str | Path | LanguageModel | NGram,
    data: Sequence[str | Path] = (),
    *,
    text_column: str = "text",
    domain_column: str | None = None,
    context: int | None = None,
    memory: int | MemoryOptions | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure bits per byte and perplexity of a model on a text.

    Bits per byte compare models with different tokenizers. Those of a masked model are of the pseudo-log-likelihood,
    which is no probability of the text. A GGUF file is computed as it is for generating, with the weights that it
    holds, where the native kernels compute such a model.

    Args:
        model: a folder, a hub id (owner/name), a GGUF file, an n-gram model's .arpa file, or what `moekit.load` gave.
        data: files, folders or hub ids of text; none for the held-out part of the embedded corpus.
        text_column: where rows (jsonl, csv, parquet, hub) hold their text.
        domain_column: where rows name their domain.
        context: the most tokens that a prediction may see; None for what the model takes, up to 2048.
        memory: bytes that the process may take, or more to say about it; by default what is free. Of a GGUF file that
            is larger, what has no place in memory is read from disk when it is needed.
        progress: gets how much of the weights is read, and how many documents are scored.

    Returns:
        Bits per byte, of all text and by domain, perplexity per token, and how many tokens and bytes were scored.

    Raises:
        UsageError: where there is no such model or text, the tokenizer is missing, the model takes fewer tokens than
            `context`, it does not fit into so much memory or has no part that could stay on disk, or there is nothing
            to score.
        MoekitError: where a file cannot be read.

    Examples:
        >>> import moekit
        >>> result = moekit.evaluate("./my-model", ["essays"])
        >>> print(f"{result.bits_per_byte:.3f} bits per byte of {result.bytes} bytes", result.by_domain)
    """
    if isinstance(data, str | Path):
        raise UsageError("data is a list of sources: [data], not the source itself.")
    if isinstance(model, str | Path):
        check_there(model)
    stored = _native_gguf(Path(model)) if isinstance(model, str | Path) else None
    options = MemoryOptions.of(memory)
    if stored is None and options.budget is not None:
        what = model if isinstance(model, str | Path) else "The model"
        raise UsageError(
            f"{what} is not computed by the native kernels out of a GGUF file, so all of it has to be in memory; leave "
            "--memory out."
        )
    documents = _documents(data, text_column, domain_column)
    if stored is not None:
        score = native_scorer(stored, context or min(stored.config.context, LONGEST), options, progress)
        return _score(score, documents, progress)
    loaded = load(model, progress=progress) if isinstance(model, str | Path) else model
    with nullcontext() if isinstance(loaded, NGram) else without_capacity(loaded):
        return _score(scorer_of(loaded, context), documents, progress)


def _score(score: Callable[[str], Score], documents: list[Document], progress: Progress) -> Evaluation:
    with Task(progress, "Documents", total=len(documents), unit="documents") as task:
        return score_documents(score, documents, task.set)


def _native_gguf(path: Path) -> GGUFModel | None:
    """Open a GGUF file that the native kernels compute; None for all else."""
    if not is_gguf(path):
        return None
    stored = GGUFModel(path)
    return stored if is_native(stored.config) else None


def _documents(data: Sequence[str | Path], text_column: str, domain_column: str | None) -> list[Document]:
    """Read the text, or the held-out part of the embedded corpus."""
    if not data:
        return list(split_documents(embedded_documents(), seed=0).held_out)
    return read_sources(
        tuple(map(str, data)), text_column=text_column, domain_column=domain_column, say=_logger.warning
    )
