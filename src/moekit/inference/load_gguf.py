"""From a GGUF file to a model that is ready to generate."""

from pathlib import Path

from moekit.core.errors import UsageError
from moekit.core.progress import Progress, Task
from moekit.data.gguf_tokenizer import GGUFTokenizer, gguf_tokenizer
from moekit.data.tokenizers import Tokenizer
from moekit.families.gguf import GGUFModel
from moekit.inference.chat_template import ChatTemplate
from moekit.inference.checks import checked_context, decoder_config
from moekit.inference.loaded_model import LoadedModel, token_ids
from moekit.inference.model_sampling import gguf_sampling
from moekit.inference.native_runner import NativeRunner
from moekit.inference.runner import Runner
from moekit.kernels.native.decoder_description import is_native
from moekit.kernels.packed import F32
from moekit.placement import MemoryOptions, PlacedModel, load_weights


def load_gguf(path: Path, context: int | None, progress: Progress, memory: MemoryOptions) -> LoadedModel:
    """Load the model in a GGUF file; `moekit.inference.load_runner` says what the arguments are and what is raised."""
    stored = GGUFModel(path)
    config = decoder_config(stored.config, path)
    checked_context(context, config.context)
    tokenizer = gguf_tokenizer(stored.file.metadata, config.vocab_size)
    end_tokens, special_texts = token_ids(tokenizer.start), dict[str, str]()
    if isinstance(tokenizer, GGUFTokenizer):
        end_tokens, special_texts = tokenizer.end_tokens, dict(tokenizer.special_texts)
    runner, placed = _runner(stored, path, context, progress, memory)
    return LoadedModel(
        runner=runner,
        tokenizer=tokenizer,
        chat_template=gguf_template(tokenizer),
        end_tokens=end_tokens,
        special_texts=special_texts,
        sampling=gguf_sampling(stored.file.metadata),
        placed=placed,
    )


def gguf_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """Give the chat template of a GGUF file's tokenizer; None where the file has none."""
    if not isinstance(tokenizer, GGUFTokenizer) or tokenizer.chat_template is None:
        return None
    return ChatTemplate(tokenizer.chat_template, tokenizer.special_texts)


def _runner(
    stored: GGUFModel, path: Path, context: int | None, progress: Progress, memory: MemoryOptions
) -> tuple[Runner, PlacedModel | None]:
    """Run the weights in place where the native kernels serve, else unpack them.

    What does not fit into memory is placed first. Weights are unpacked to bf16, which is nearest to what files mostly
    hold in memory and speed, or to fp32 where they hold that.
    """
    if is_native(stored.config):
        loaded = load_weights(stored, memory, context, progress)
        longest = context if loaded.placed is None else loaded.placed.placement.context
        return NativeRunner(stored.config, loaded.weights, longest, loaded.streaming), loaded.placed
    if memory.budget is not None:
        raise UsageError(
            f"{path} is computed by torch, which has all of a model in memory; leave --memory out, "
            "or take another model."
        )
    import torch

    from moekit.inference.torch_runner import TorchRunner
    from moekit.models.gguf import load_gguf as load_unpacked

    is_fp32 = stored.file["token_embd.weight"].code == F32.code
    with Task(progress, "Loading", unit="bytes") as task:
        model = load_unpacked(path, torch.float32 if is_fp32 else torch.bfloat16, task.set)
    return TorchRunner(model, context), None
