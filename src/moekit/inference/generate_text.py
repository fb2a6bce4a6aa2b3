"""`moekit.generate`: prompts continued by a model, from its folder or file to the text, in one call."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack, overload

from moekit.core.progress import Progress, Task, no_progress
from moekit.inference.generation import Completion, GenerationOptions, OnText, complete
from moekit.inference.load import load_runner
from moekit.inference.loaded_model import LoadedModel
from moekit.inference.prompt_tokens import prompt_ids
from moekit.inference.sampling import SamplingOptions
from moekit.placement import MemoryOptions


class _Options(TypedDict, total=False):
    """The options of `generate`, so that its two signatures need not list them."""

    max_tokens: int | None
    stop: Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    on_text: OnText | None
    progress: Progress


@overload
def generate(model: str | Path | LoadedModel, prompts: str, **options: Unpack[_Options]) -> Completion: ...


@overload
def generate(model: str | Path | LoadedModel, prompts: list[str], **options: Unpack[_Options]) -> list[Completion]: ...


def generate(
    model: str | Path | LoadedModel,
    prompts: str | list[str],
    *,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    on_text: OnText | None = None,
    progress: Progress = no_progress,
) -> Completion | list[Completion]:
    """Continue one text, or several together, with a model.

    Args:
        model: a folder, a hub id (owner/name) or a GGUF file; or what `moekit.load_runner` gave, which saves loading
            the model at each call.
        prompts: a text, or a list of texts, which are continued together as a batch.
        max_tokens: the most tokens of a completion; None for what the context leaves.
        stop: strings that end a completion and are not part of it.
        temperature: what logits are divided by; 0 takes the most probable token.
        top_k: how many of the most probable tokens stay; 0 for all.
        top_p: the most probable tokens stay whose probabilities add up to this.
        min_p: tokens stay that have at least this share of the most probable one's probability.
        repetition_penalty: more than 1 makes tokens that were seen already less probable.
        logit_bias: what is added to the logits of tokens, by id.
        seed: of what is drawn; None for another one at every call.
        on_text: called with the number of a prompt, from 0, and each further piece of its completion, as it is made.
        progress: gets how much of the weights is read, and how many tokens of the prompts are computed.

    Returns:
        The completion of a text, or a list with one for each text of a list: the text, why it ended, and the speed.

    Raises:
        UsageError: where there is no such model, it cannot generate, an option is out of bounds, or a prompt is empty
            or leaves no room in the context.
        MoekitError: where a file cannot be read, or the model gives logits that are no numbers.

    Examples:
        >>> import moekit
        >>> completion = moekit.generate("./my-model", "Once upon a time", max_tokens=8)
        >>> print(completion.text, completion.finish_reason)
        >>> model = moekit.load_runner("./my-model")
        >>> def show(number: int, piece: str) -> None:
        ...     print(number, piece)
        >>> both = moekit.generate(model, ["The sun", "The moon"], max_tokens=8, temperature=0.8, seed=1, on_text=show)
        >>> [one.completion_tokens for one in both]
        [8, 8]
    """
    sampling = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        logit_bias=logit_bias or {},
        seed=seed,
    )
    options = GenerationOptions(max_tokens=max_tokens, stop=tuple(stop), sampling=sampling)
    if isinstance(model, LoadedModel):
        loaded = model
    else:
        together = MemoryOptions(sequences=1 if isinstance(prompts, str) else max(1, len(prompts)))
        loaded = load_runner(model, memory=together, progress=progress)
    begin = time.perf_counter()
    ids = [prompt_ids(prompt, loaded.tokenizer) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
    encoding_s = time.perf_counter() - begin
    with Task(progress, "Prompt", total=sum(map(len, ids)), unit="tokens") as task:

        def say(number: int, piece: str) -> None:
            task.finish()
            if on_text is not None:
                on_text(number, piece)

        options = replace(options, end_tokens=loaded.end_tokens)
        found = complete(loaded.runner, loaded.tokenizer, ids, options, say, on_tokens=task.advance)
    completions = [replace(one, time_to_first_token_s=encoding_s + one.time_to_first_token_s) for one in found]
    return completions[0] if isinstance(prompts, str) else completions
