"""From a folder, a hub id or a GGUF file to what generates with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moekit.config import ModelConfig
from moekit.core.errors import MoekitError, UsageError
from moekit.data.gguf_tokenizer import GGUFTokenizer, gguf_tokenizer
from moekit.data.tokenizers import Tokenizer
from moekit.families.gguf import GGUFModel
from moekit.inference.chat_template import ChatTemplate
from moekit.inference.limits import checked_context, decoder_config
from moekit.inference.native_runner import NativeRunner
from moekit.inference.runner import Runner
from moekit.kernels import native
from moekit.kernels.native.decoder import unsupported
from moekit.kernels.packed import F32

OnBytes = Callable[[int, int], None]
"""Called with the bytes of weights read so far and those there are."""

_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, ready to generate. end_tokens: the ids that end a text or an answer."""

    runner: Runner
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    end_tokens: frozenset[int]


def load_runner(
    model: str | Path, *, context: int | None = None, quantize: str | None = None, on_bytes: OnBytes | None = None
) -> LoadedModel:
    """The model in a folder or a GGUF file, or of a hub id (owner/name), with the fastest runner that serves it.

    context: tokens of a sequence; by default the model's. quantize: the type (q8_0, q4_k, …) that a folder's matrices
    are packed into, as `convert.quantize` would write them; until then all of them are in memory as they are stored.
    Everything but the weights is read and checked first. Raises UsageError where there is no such model, it cannot
    generate or be quantised, its tokenizer is missing or the context is more than its own; MoekitError where a file
    cannot be read.
    """
    if is_gguf(Path(model)):
        if quantize is not None:
            raise UsageError(f"{model} is a GGUF file, whose weights run in the types they have; leave --quantize out.")
        return _load_gguf(Path(model), context, on_bytes)
    # Torch and the modules of all models, which a GGUF file need not wait for.
    from moekit.inference.folder import load_folder
    from moekit.models import find

    return load_folder(find(model), context, quantize, on_bytes)


def is_gguf(path: Path) -> bool:
    """Whether it is a file that begins as GGUF files do, or is named like one."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC or path.suffix == ".gguf"
    except OSError as error:
        raise MoekitError(f"Cannot read {path}: {error.strerror}.") from error


def _load_gguf(path: Path, context: int | None, on_bytes: OnBytes | None) -> LoadedModel:
    stored = GGUFModel(path)
    config = decoder_config(stored.config)
    checked_context(context, config.context)
    tokenizer = gguf_tokenizer(stored.file.metadata, config.vocab_size)
    template, end_tokens = None, token_ids(tokenizer.start)
    if isinstance(tokenizer, GGUFTokenizer):
        end_tokens = tokenizer.end_tokens
        if tokenizer.chat_template is not None:
            template = ChatTemplate(tokenizer.chat_template, tokenizer.special_texts)
    runner = _gguf_runner(stored, path, context, on_bytes)
    return LoadedModel(runner=runner, tokenizer=tokenizer, chat_template=template, end_tokens=end_tokens)


def _gguf_runner(stored: GGUFModel, path: Path, context: int | None, on_bytes: OnBytes | None) -> Runner:
    """In place where the native kernels serve. Else unpacked to bf16, which is nearest to what files mostly hold in
    memory and speed, or to fp32 where they hold that.
    """
    if is_native(stored.config):
        return NativeRunner(stored.config, stored.weights(), context)
    import torch

    from moekit.inference.torch_runner import TorchRunner
    from moekit.models.gguf import load_gguf

    is_fp32 = stored.file["token_embd.weight"].code == F32.code
    return TorchRunner(load_gguf(path, torch.float32 if is_fp32 else torch.bfloat16, on_bytes), context)


def is_native(config: ModelConfig) -> bool:
    """Whether the native kernels are there and compute such a model."""
    return native.available() and unsupported(config) is None


def token_ids(value: Any) -> frozenset[int]:
    listed = value if isinstance(value, list) else [value]
    return frozenset(id_ for id_ in listed if isinstance(id_, int) and not isinstance(id_, bool))
