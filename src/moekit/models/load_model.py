"""Loading a model from a folder or a hub id."""

import re
from pathlib import Path

import torch
from torch import nn

from moekit.checkpoint.gguf import is_gguf
from moekit.config import (
    Config,
    EncoderConfig,
    EncoderDecoderConfig,
    GRUSeq2SeqConfig,
    LSTMConfig,
    LSTMSeq2SeqConfig,
    ModelConfig,
    XLNetConfig,
)
from moekit.core.errors import MoekitError, UsageError
from moekit.core.progress import Progress, Task, no_progress
from moekit.families import presets
from moekit.families.gguf import GGUFModel
from moekit.models.attention_seq2seq import GRUSeq2Seq
from moekit.models.companions import PATTERNS
from moekit.models.decoder import Decoder
from moekit.models.encoder import Encoder
from moekit.models.encoder_decoder import EncoderDecoder
from moekit.models.folder import CONFIG, read_config
from moekit.models.gguf import load_gguf
from moekit.models.language_model import LanguageModel
from moekit.models.ngram import NGram, load_arpa
from moekit.models.read_folder import read_model
from moekit.models.recurrent import LSTMLanguageModel
from moekit.models.seq2seq import LSTMSeq2Seq
from moekit.models.xlnet import XLNet

MODELS: dict[type[Config], type[LanguageModel]] = {
    ModelConfig: Decoder,
    EncoderConfig: Encoder,
    XLNetConfig: XLNet,
    EncoderDecoderConfig: EncoderDecoder,
    LSTMConfig: LSTMLanguageModel,
    LSTMSeq2SeqConfig: LSTMSeq2Seq,
    GRUSeq2SeqConfig: GRUSeq2Seq,
}
"""The module of each kind of configuration."""


_FILE_SUFFIXES = (".gguf", ".arpa", ".safetensors", ".bin", ".pt", ".pth", ".json", ".yaml", ".yml", ".txt", ".onnx")


def build(config: Config) -> LanguageModel:
    """Build the model of that configuration, its weights drawn from torch's current seed."""
    return MODELS[type(config)](config)


def load(
    model: str | Path, *, dtype: torch.dtype | None = None, progress: Progress = no_progress
) -> LanguageModel | NGram:
    """Load a model for training, scoring and changing: a torch module with its weights, in evaluation mode.

    Only safetensors are read, and old `.bin` files through torch's `weights_only`; code in a folder never runs.
    `moekit.load_runner` loads for generating.

    Args:
        model: a folder as Hugging Face's libraries write it, a hub id (owner/name), a GGUF file, or an n-gram model's
            .arpa file.
        dtype: of the weights; None leaves them as they are stored, or where they are of several types, makes them what
            config.json says. Those of a GGUF file are unpacked to this type, None being fp32.
        progress: gets how many bytes of the weights are read.

    Returns:
        The module of the model's kind, such as a `moekit.models.Decoder`: called with tokens of shape (B, T) it gives
        logits, `log_prob` scores tokens, and `save` writes a folder. Of an .arpa file an `NGram`.

    Raises:
        UsageError: where there is no such model.
        MoekitError: where it cannot be read; the message names file and tensor.

    Examples:
        >>> import moekit, torch
        >>> model = moekit.load("./my-model")
        >>> logits_BTV = model(torch.tensor([[72, 101, 108, 108, 111]]))
        >>> model.save("./again")
    """
    if str(model).endswith(".arpa"):
        if not Path(model).is_file():
            raise missing(str(model))
        return load_arpa(Path(model))
    found = find(model)
    with Task(progress, "Loading", unit="bytes") as task:
        if is_gguf(found):
            loaded: nn.Module = load_gguf(found, dtype or torch.float32, task.set)
        else:
            loaded = read_model(found, build, dtype, task.set)
    assert isinstance(loaded, LanguageModel)
    loaded.origin = found
    return loaded


def find(model: str | Path, *, only_config: bool = False) -> Path:
    """Find the local folder of a model, or its GGUF file.

    Args:
        model: the folder or file, or a hub id, of which the folder is downloaded.
        only_config: whether its config.json alone is downloaded.

    Raises:
        UsageError: where there is no such model.
        MoekitError: where it cannot be downloaded.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise UsageError(f"{folder} is not a model's folder: it has no {CONFIG}{_instead(folder)}.")
        return folder
    if is_gguf(folder):
        return folder
    if folder.is_file():
        raise UsageError(
            f"{folder} is a file; a model is a folder with {CONFIG}, a GGUF file, or a hub id (owner/name)."
        )
    if not looks_like_hub_id(str(model)):
        raise missing(str(model))
    return _downloaded(str(model), only_config=only_config)


def config_of(found: Path) -> Config:
    """Read the configuration of a model that `find` found; its weights are not looked at."""
    return GGUFModel(found).config if is_gguf(found) else read_config(found)[1]


def check_there(model: str | Path) -> None:
    """Raise UsageError where there is no such file or folder, and it is no hub id either: before any other work."""
    if not Path(model).exists() and not looks_like_hub_id(str(model)):
        raise missing(str(model))


def looks_like_hub_id(text: str) -> bool:
    """Tell whether a text has the form owner/name, and is not a file's name."""
    is_file = text.lower().endswith(_FILE_SUFFIXES)
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", text)) and not text.startswith(".") and not is_file


def _instead(folder: Path) -> str:
    """Say what a folder without a config.json holds instead."""
    if files := sorted(folder.glob("*.gguf")):
        return f"; name the GGUF file in it, {files[0]}"
    if (folder / "adapter_config.json").is_file():
        return "; it is a LoRA adapter, which `moekit merge` takes as MODEL+ADAPTER"
    return ""


def names_a_place(text: str) -> bool:
    """Tell whether a text can only be a path or a hub id, whether or not there is something: no name of a preset is."""
    return "/" in text or text.lower().endswith(_FILE_SUFFIXES)


def missing(text: str) -> UsageError:
    """Make the error for a model that is not there."""
    if text.lower().endswith(_FILE_SUFFIXES):
        return UsageError(f"There is no file {text!r}.")
    if address := re.match(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", text):
        return UsageError(f"{text} is an address; the model's hub id is {address[1]}.")
    hint = " It is the name of a preset, which has no weights." if text in presets() else ""
    return UsageError(f"There is no folder {text!r}, and it is no hub id (owner/name).{hint}")


def _reason(error: OSError) -> str:
    """Give the first sentence about what went wrong, without what the hub's library advises."""
    told = error.__cause__ if isinstance(error.__cause__, OSError) else error
    first = re.split(r"\. |\n", str(told).strip())[0].rstrip(".")
    return first.removeprefix("Got: ") or type(told).__name__


def _downloaded(hub_id: str, *, only_config: bool) -> Path:
    """Download a snapshot into Hugging Face's cache; it shows its own progress."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    except ImportError as error:
        raise UsageError("Models of the hub need huggingface_hub: pip install huggingface_hub") from error
    wanted = [CONFIG] if only_config else [CONFIG, "*.safetensors", "*.safetensors.index.json", *PATTERNS]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted))
        if not only_config and not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*wanted, "pytorch_model*.bin*"]))
    except RepositoryNotFoundError as error:
        raise MoekitError(
            f"There is no folder {hub_id!r}, and the hub shows no such model; for one that is private or gated, set "
            "HF_TOKEN to a token that may read it."
        ) from error
    except HFValidationError as error:
        raise UsageError(f"There is no folder {hub_id!r}, and it is no hub id (owner/name).") from error
    except (HfHubHTTPError, OSError) as error:
        raise MoekitError(
            f"There is no folder {hub_id!r}, and as a hub id it cannot be downloaded ({_reason(error)}); check the "
            "name and the network, or give a folder."
        ) from error
    return folder
