"""Loading: from a folder, a hub id or a GGUF file to a model that is ready to generate."""

from pathlib import Path

from moekit.checkpoint.gguf import is_gguf
from moekit.core.errors import UsageError
from moekit.core.progress import Progress, no_progress
from moekit.inference.load_gguf import load_gguf
from moekit.inference.loaded_model import LoadedModel
from moekit.placement import MemoryOptions


def load_runner(
    model: str | Path,
    *,
    context: int | None = None,
    quantize: str | None = None,
    memory: int | MemoryOptions | None = None,
    progress: Progress = no_progress,
) -> LoadedModel:
    """Load a model for generating, with the fastest runner that serves it here.

    Everything but the weights is read and checked first. `moekit.load` loads for training and scoring.

    Args:
        model: a folder, a hub id (owner/name) or a GGUF file.
        context: the most tokens of a sequence; None for the model's.
        quantize: the type (q8_0, q4_k, …) that a folder's matrices are packed into, as `moekit.quantize` would write
            them; until then all of them are in memory as they are stored.
        memory: bytes that the process may take, or more to say about it; by default what is free. Of a GGUF file that
            is larger, experts, and at last attention and ffns, that have no place in memory are read from disk when
            they are needed, which changes no bit of an answer.
        progress: gets how many bytes of the weights are read.

    Returns:
        The model's runner, tokenizer, chat template and end tokens: what `moekit.generate` and
        `moekit.inference.Conversation` take.

    Raises:
        UsageError: where there is no such model, it cannot generate or be quantised, its tokenizer is missing, the
            context is more than its own or it does not fit into so much memory.
        MoekitError: where a file cannot be read.

    Examples:
        >>> import moekit
        >>> model = moekit.load_runner("./my-model", context=64)
        >>> model.runner.context, moekit.generate(model, "Once", max_tokens=4).completion_tokens
        (64, 4)
    """
    options = MemoryOptions.of(memory)
    if is_gguf(Path(model)):
        if quantize is not None:
            raise UsageError(f"{model} is a GGUF file, whose weights run in the types they have; leave --quantize out.")
        return load_gguf(Path(model), context, progress, options)
    if options.budget is not None:
        raise UsageError(
            f"{model} is a folder, all of which is in memory to generate; make a GGUF file of it with "
            "`moekit quantize`, and give --memory with that."
        )
    # Torch and the modules of all models, which a GGUF file need not wait for.
    from moekit.inference.load_folder import load_folder
    from moekit.models import find

    return load_folder(find(model), context, quantize, progress)
