"""From a Hugging Face folder to a model that is ready to generate."""

from pathlib import Path

from moekit.config import ModelConfig
from moekit.core.errors import UsageError, did_you_mean
from moekit.core.progress import Progress
from moekit.data.model_tokenizer import tokenizer_of
from moekit.data.tokenizer_files import ids_of, read_object, read_tokenizer_settings
from moekit.data.tokenizers import FileTokenizer, Tokenizer
from moekit.inference.chat_template import folder_template
from moekit.inference.checks import checked_context, decoder_config
from moekit.inference.loaded_model import LoadedModel
from moekit.inference.model_sampling import folder_sampling
from moekit.inference.native_runner import NativeRunner
from moekit.inference.packed_weights import packed_weights
from moekit.inference.runner import Runner
from moekit.inference.torch_runner import TorchRunner
from moekit.kernels import native
from moekit.kernels.native.decoder_description import is_native, unsupported
from moekit.kernels.packed import BLOCK_TYPES_BY_NAME, BlockType
from moekit.models import Decoder, load
from moekit.models.folder import read_config


def load_folder(folder: Path, context: int | None, quantize: str | None, progress: Progress) -> LoadedModel:
    """Load the model in a folder; `moekit.inference.load_runner` says what the arguments are and what is raised."""
    config = decoder_config(read_config(folder)[1], folder)
    checked_context(context, config.context)
    kind = None if quantize is None else _checked_type(quantize, config)
    tokenizer = tokenizer_of(folder, config.vocab_size)
    template = folder_template(folder)
    end_tokens = _end_tokens(folder, tokenizer)
    runner = _runner(folder, context, kind, progress)
    return LoadedModel(
        runner=runner,
        tokenizer=tokenizer,
        chat_template=template,
        end_tokens=end_tokens,
        special_texts=read_tokenizer_settings(folder).named,
        sampling=folder_sampling(folder),
    )


def _checked_type(name: str, config: ModelConfig) -> BlockType:
    """Find the type of that name, if the native kernels compute such a model in it."""
    if name not in BLOCK_TYPES_BY_NAME:
        raise UsageError(f"There is no type {name!r} to quantise to: {did_you_mean(name, BLOCK_TYPES_BY_NAME)}")
    if not native.available():
        raise UsageError("--quantize needs the native kernels, and they are not built here; `moekit doctor` says why.")
    if reason := unsupported(config):
        raise UsageError(f"--quantize needs the native kernels, and they do not compute this model, because {reason}.")
    return BLOCK_TYPES_BY_NAME[name]


def _runner(folder: Path, context: int | None, kind: BlockType | None, progress: Progress) -> Runner:
    model = load(folder, progress=progress)
    assert isinstance(model, Decoder)
    if is_native(model.config):
        return NativeRunner(model.config, packed_weights(model, kind), context)
    return TorchRunner(model, context)


def _end_tokens(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Give the tokens that end an answer; bytes end as config.json says, or at a separator."""
    if isinstance(tokenizer, FileTokenizer):
        return tokenizer.end_tokens
    ids = (ids_of(read_object(folder / name).get("eos_token_id")) for name in ("generation_config.json", "config.json"))
    return frozenset(next(filter(None, ids), ids_of(tokenizer.start)))
