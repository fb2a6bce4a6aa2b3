"""Loading: from a folder, a hub id or a GGUF file to a model that is ready to generate."""

from pathlib import Path

from moekit.core.errors import MoekitError, UsageError
from moekit.inference.load_gguf import load_gguf
from moekit.inference.loaded_model import LoadedModel, OnBytes

_GGUF_MAGIC = b"GGUF"


def load_runner(
    model: str | Path, *, context: int | None = None, quantize: str | None = None, on_bytes: OnBytes | None = None
) -> LoadedModel:
    """Load a model, ready to generate, with the fastest runner that serves it.

    Everything but the weights is read and checked first.

    Args:
        model: a folder, a GGUF file, or a hub id (owner/name).
        context: the tokens of a sequence; by default the model's.
        quantize: the type (q8_0, q4_k, …) that a folder's matrices are packed into, as `moekit quantize` would write
            them; until then all of them are in memory as they are stored.
        on_bytes: called with the bytes of weights read so far and those there are.

    Raises:
        UsageError: where there is no such model, it cannot generate or be quantised, its tokenizer is missing or the
            context is more than its own.
        MoekitError: where a file cannot be read.
    """
    if is_gguf(Path(model)):
        if quantize is not None:
            raise UsageError(f"{model} is a GGUF file, whose weights run in the types they have; leave --quantize out.")
        return load_gguf(Path(model), context, on_bytes)
    # Torch and the modules of all models, which a GGUF file need not wait for.
    from moekit.inference.load_folder import load_folder
    from moekit.models import find

    return load_folder(find(model), context, quantize, on_bytes)


def is_gguf(path: Path) -> bool:
    """Tell whether the file begins as GGUF files do, or is named like one."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC or path.suffix == ".gguf"
    except OSError as error:
        raise MoekitError(f"Cannot read {path}: {error.strerror}.") from error
