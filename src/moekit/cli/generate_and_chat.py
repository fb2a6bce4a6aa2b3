"""The parts that `moekit generate` and `moekit chat` share: sampling options, loading, and figures at the end."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from moekit.core.errors import UsageError
from moekit.kernels.packed.block_types import BLOCK_TYPES_BY_NAME

if TYPE_CHECKING:
    from moekit.inference import Completion, LoadedModel, SamplingOptions


def sampling_options(temperature: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of both verbs to a command; `temperature` is the default of that one."""
    options = (
        click.option("--max-tokens", type=click.IntRange(1), help="Of an answer.  [default: what the context leaves]"),
        click.option(
            "--temperature",
            type=click.FloatRange(0),
            default=temperature,
            show_default=True,
            help="Logits are divided by it; 0 takes the most probable token.",
        ),
        click.option(
            "--top-k", type=click.IntRange(0), default=0, help="The most probable tokens that stay; 0 for all."
        ),
        click.option("--top-p", type=float, default=1.0, help="Tokens stay whose probabilities add up to this."),
        click.option(
            "--min-p", type=float, default=0.0, help="Tokens stay with this share of the most probable one's."
        ),
        click.option("--repetition-penalty", type=float, default=1.0, help="Over 1 for fewer repetitions (CTRL)."),
        click.option("--logit-bias", multiple=True, metavar="ID=VALUE", help="Added to a token's logit; repeatable."),
        click.option("--seed", type=int, help="The same seed gives the same text.  [default: another each time]"),
        click.option(
            "--stop", multiple=True, metavar="TEXT", help="Ends an answer, and is not part of it; repeatable."
        ),
        click.option("--context", type=click.IntRange(2), help="Tokens of a sequence.  [default: the model's]"),
        click.option(
            "--quantize", type=click.Choice(BLOCK_TYPES_BY_NAME), help="Pack the matrices of a folder into this type."
        ),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


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


def load_to_generate(model: str, context: int | None, quantize: str | None) -> "LoadedModel":
    """Load the model as moekit.load_runner does, with a progress bar."""
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.inference import load_runner

    return load_runner(model, context=context, quantize=quantize, progress=ProgressDisplay())


def read_sampling(sampling: dict[str, Any]) -> "SamplingOptions":
    """Read the command line's options of sampling. Raise UsageError where one is out of bounds."""
    from moekit.inference import SamplingOptions

    bias = dict(_bias(text) for text in sampling["logit_bias"])
    return SamplingOptions(**sampling | {"logit_bias": bias})


def figures(completion: "Completion", waited: float) -> str:
    """Write a line: `12 tokens of prompt at 250/s · 80 tokens at 38.1/s · first after 0.8 s`; waited: in seconds."""
    from moekit.core.formatting import duration_text

    parts = [f"{completion.prompt_tokens} tokens of prompt at {completion.prefill_tokens_per_second:.1f}/s"]
    speed = completion.decode_tokens_per_second
    parts.append(f"{completion.completion_tokens} tokens" + ("" if speed is None else f" at {speed:.1f}/s"))
    return " · ".join([*parts, f"first after {duration_text(waited)}"])


def _bias(text: str) -> tuple[int, float]:
    id_, _, value = text.partition("=")
    try:
        return int(id_), float(value)
    except ValueError:
        raise UsageError(f"--logit-bias {text!r} is not like 42=-1.5, a token's id and what its logit gets.") from None
