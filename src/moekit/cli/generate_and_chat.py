"""The parts that `moekit generate` and `moekit chat` share: sampling options, loading, and figures at the end."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from moekit.cli.memory_option import memory_option, memory_options
from moekit.cli.option_types import BlockTypeName, Number, WholeNumber
from moekit.cli.standard_streams import TextArgument
from moekit.core.errors import UsageError

if TYPE_CHECKING:
    from moekit.inference import Completion, LoadedModel, SamplingOptions


def sampling_options(temperature: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of both verbs to a command; `temperature` says what its default is."""
    options = (
        click.option(
            "-n",
            "--max-tokens",
            type=WholeNumber(-(2**31)),
            callback=_token_count,
            help="Of an answer; -1 for what the context leaves.  [default: -1]",
        ),
        click.option(
            "--temperature",
            type=Number(0),
            help=f"Logits are divided by it; 0 takes the most probable token.  [default: {temperature}]",
        ),
        click.option("--top-k", type=WholeNumber(), help="The most probable tokens that stay; 0 for all."),
        click.option("--top-p", type=Number(), help="Tokens stay whose probabilities add up to this."),
        click.option("--min-p", type=Number(), help="Tokens stay with this share of the most probable one's."),
        click.option("--repetition-penalty", type=Number(), help="Over 1 for fewer repetitions (CTRL)."),
        click.option("--logit-bias", multiple=True, metavar="ID=VALUE", help="Added to a token's logit; repeatable."),
        click.option(
            "--seed",
            type=WholeNumber(-1, 2**63 - 1),
            help="The same seed gives the same text; -1 for another each time.  [default: -1]",
        ),
        click.option(
            "--stop",
            multiple=True,
            type=TextArgument(),
            metavar="TEXT",
            help="Ends an answer, and is not part of it; repeatable.",
        ),
        click.option("--context", type=WholeNumber(2), help="Tokens of a sequence.  [default: the model's]"),
        memory_option(),
        click.option("--quantize", type=BlockTypeName(), help="Pack the matrices of a folder into this type."),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


MODEL_OPTION = click.option(
    "-m", "--model", "named", metavar="MODEL", help="The same as MODEL without an option, as other programs have it."
)


def model_and_texts(named: str | None, *arguments: str | None) -> tuple[str, list[str]]:
    """Tell the model from the texts: it is what -m names, else the first argument.

    Raises:
        click.UsageError: where there is no model.
    """
    words = [word for word in (named, *arguments) if word is not None]
    if not words:
        raise click.UsageError("MODEL is missing: a folder, a hub id (owner/name) or a GGUF file")
    return words[0], words[1:]


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Collect no garbage within the block, which is for imports and loading.

    Next to nothing of that becomes garbage, and looking for it among torch's objects, half a million, again and again,
    takes a third of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        # Out of the youngest generation, which is searched first, into the oldest.
        gc.freeze()
        gc.unfreeze()
        gc.enable()


def load_to_generate(
    model: str, context: int | None, quantize: str | None, memory: str | None, sequences: int = 1
) -> "LoadedModel":
    """Load the model as moekit.load_runner does, with a progress bar, and before it a table of what lies where."""
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.inference import load_runner

    options = memory_options(memory, sequences)
    return load_runner(model, context=context, quantize=quantize, memory=options, progress=ProgressDisplay())


def read_sampling(sampling: dict[str, Any], **defaults: float) -> "SamplingOptions":
    """Read the command line's options of sampling. Raise UsageError where one is out of bounds.

    Args:
        sampling: what was given; None for what was not.
        defaults: what holds instead.
    """
    from moekit.inference import SamplingOptions

    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if given.get("seed") == -1:  # llama.cpp's word for another one each time
        del given["seed"]
    bias = dict(_bias(text) for text in sampling["logit_bias"])
    return SamplingOptions(**{**defaults, **given, "logit_bias": bias})


def figures(completion: "Completion", waited: float) -> str:
    """Write a line: `12 tokens of prompt at 250/s · 80 tokens at 38.1/s · first after 0.8 s`; waited: in seconds."""
    from moekit.core.formatting import duration_text

    parts = [f"{completion.prompt_tokens} tokens of prompt at {completion.prefill_tokens_per_second:.1f}/s"]
    speed = completion.decode_tokens_per_second
    parts.append(f"{completion.completion_tokens} tokens" + ("" if speed is None else f" at {speed:.1f}/s"))
    return " · ".join([*parts, f"first after {duration_text(waited)}"])


def cut_off(completion: "Completion", context: int) -> str | None:
    """Say in a sentence what cut an answer off; None where it ended by itself."""
    if completion.finish_reason != "length":
        return None
    if completion.prompt_tokens + completion.completion_tokens >= context:
        return f"The answer is cut off: the context of {context:,} tokens is full."
    return f"The answer is cut off after {completion.completion_tokens:,} tokens, as --max-tokens says."


def _token_count(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    """Take -1, other programs' word for no limit, as none."""
    if value is not None and value != -1 and value < 1:
        raise click.BadParameter(f"{value} is no number of tokens: give 1 or more, or -1 for what the context leaves.")
    return None if value == -1 else value


def _bias(text: str) -> tuple[int, float]:
    id_, _, value = text.partition("=")
    try:
        return int(id_), float(value)
    except ValueError:
        raise UsageError(f"--logit-bias {text!r} is not like 42=-1.5, a token's id and what its logit gets.") from None
