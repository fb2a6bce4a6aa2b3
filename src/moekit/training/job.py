"""`moekit train`: its YAML file, and one training from start to a saved model."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator

from moekit.config import (
    AnyModelConfig,
    Config,
    EncoderConfig,
    EncoderDecoderConfig,
    GRUSeq2SeqConfig,
    LSTMSeq2SeqConfig,
    ModelConfig,
    NGramConfig,
    XLNetConfig,
    never_learns,
)
from moekit.core import files
from moekit.core.errors import UsageError
from moekit.core.validation import read_yaml, validate
from moekit.data import Corpus, check_large_enough, load_corpus
from moekit.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer
from moekit.data.tokens import tokenized
from moekit.families import preset
from moekit.models import Decoder, LanguageModel, NGram, build, load
from moekit.training.loop import StepReport, Trainer
from moekit.training.objectives import Objective, PairObjective, read_pairs
from moekit.training.step import held_out_bits
from moekit.training.step_log import StepLog
from moekit.training.training_config import TrainingConfig

Say = Callable[[str], None]


class Schedule(Config):
    """How long and how: the parts of TrainingConfig that a user sets.

    Attributes:
        tokens: the tokens of all steps together, instead of steps.
        context: the tokens of a row; by default the model's, up to 512.
        measure: how often the held-out text is measured.
    """

    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    sequences: PositiveInt = 16
    micro_sequences: PositiveInt | None = None
    context: PositiveInt | None = None
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: PositiveInt = 50
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: PositiveFloat = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    seed: int = 0
    measure: PositiveInt = 10
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give steps or tokens, one of them")
        return self


class Job(Config):
    """What the YAML file says.

    One of model, preset and start is given.

    Attributes:
        model: a configuration with its kind.
        preset: the name of a preset.
        start: a folder with a model to go on from.
        data: sources as `moekit compare --data` takes them, none for the embedded corpus.
        pairs: instead of these a file of JSON lines with `source` and `target`, for a model that goes from one to the
            other.
        tokenizer: a folder with a tokenizer.json; without it bytes, or that of `start`.
    """

    model: AnyModelConfig | None = None
    preset: str | None = None
    start: str | None = None
    data: tuple[str, ...] = ()
    pairs: str | None = None
    text_column: str = "text"
    domain_column: str | None = None
    tokenizer: str | None = None
    training: Schedule | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(given is not None for given in (self.model, self.preset, self.start)) != 1:
            raise ValueError("give one of model, preset and start")
        layers = self.model.feed_forwards if isinstance(self.model, ModelConfig | EncoderConfig | XLNetConfig) else ()
        if reason := never_learns(layers):
            raise ValueError(reason)
        if self.training is None and not isinstance(self.model, NGramConfig):
            raise ValueError("training is missing: give at least steps or tokens")
        return self


class Result(BaseModel):
    """The outcome of a training.

    Attributes:
        held_out_bits: loss per prediction on held-out text, in bits; for bytes read in order, bits per byte.
    """

    model: str
    parameters: int
    tokens: int
    seconds: float
    held_out_bits: float | None


def read_job(path: Path) -> Job:
    """Read the file; raise UsageError naming the key that is wrong."""
    return validate(Job, read_yaml(path), where=str(path))


def run_job(
    job: Job, out: Path, on_start: Callable[[int], None], on_step: Callable[[StepReport], None], say: Say
) -> Result:
    """Train, or go on with what was stopped, and save the model to `out`/model.

    Args:
        job: what the YAML file says.
        out: the folder for everything.
        on_start: called with the number of steps.
        on_step: called after each step.
        say: called with messages for the user.

    Raises:
        UsageError: where `out` holds another job.
        Interrupted: where it was stopped; the state is saved.
        TrainingFailed: where the loss is not a number any more.
    """
    with _fixed(job, out):
        if isinstance(job.model, NGramConfig):
            return _train_ngram(job.model, _corpus(job, say), out, say)
        return _train(job, out, on_start, on_step, say)


@contextmanager
def _fixed(job: Job, out: Path) -> Iterator[None]:
    """Write the job down first, so that another one does not go on in its place."""
    file = out / "job.json"
    text = job.model_dump_json(indent=1)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise UsageError(f"{out} holds another training (see {file}); name another --out.")
    if (out / "model").exists():
        raise UsageError(f"{out / 'model'} is there: this training has ended; name another --out.")
    files.write_text(file, text)
    yield


def _train_ngram(config: NGramConfig, corpus: Corpus, out: Path, say: Say) -> Result:
    begin = time.perf_counter()
    documents = [part for text in corpus.domains for part in text.train.tobytes().split(b"\0") if part]
    if config.unit == "words":
        lines = (line for document in documents for line in document.decode("utf-8", errors="replace").split("\n"))
        model = NGram.train_words(lines, order=config.order, say=say)
    else:
        model = NGram.train_bytes(documents, order=config.order, say=say)
    path = out / "model.arpa"
    model.save(path)
    return Result(
        model=str(path),
        parameters=sum(model.ngrams),
        tokens=sum(map(len, documents)),
        seconds=time.perf_counter() - begin,
        held_out_bits=None,
    )


def _train(
    job: Job, out: Path, on_start: Callable[[int], None], on_step: Callable[[StepReport], None], say: Say
) -> Result:
    assert job.training is not None
    torch.manual_seed(job.training.seed)
    model = _model(job)
    config = _training_config(job.training, model)
    check_trainable(model, config)
    objective = _objective(job, model, config, say)
    measured = objective.held_out(8192)
    trainer = Trainer(
        model.train(),
        config,
        objective.train,
        lambda averaged: held_out_bits(averaged, measured, config),
        out / "state.safetensors",
        StepLog(out),
    )
    on_start(config.steps)
    progress = trainer.run(on_step)
    trained = trainer.averaged.eval()
    folder = job.start or job.tokenizer
    trained.origin = Path(folder) if folder else None
    trained.save(out / "model")
    return Result(
        model=str(out / "model"),
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        tokens=progress.step * config.step_tokens,
        seconds=progress.seconds,
        held_out_bits=progress.points[-1].bits_per_byte if progress.points else None,
    )


def _model(job: Job) -> LanguageModel:
    if job.start is not None:
        loaded = load(job.start, dtype=torch.float32)
        if not isinstance(loaded, LanguageModel):
            raise UsageError(f"{job.start} is an n-gram model, which is counted anew, not trained further.")
        return loaded
    config = preset(job.preset).config if job.preset is not None else job.model
    assert config is not None
    return build(config)


def _corpus(job: Job, say: Say) -> Corpus:
    return load_corpus(job.data, text_column=job.text_column, domain_column=job.domain_column, say=say)


def _objective(job: Job, model: LanguageModel, config: TrainingConfig, say: Say) -> Objective | PairObjective:
    tokenizer = _tokenizer(job, model)
    if job.pairs is None:
        corpus = tokenized(_corpus(job, say), tokenizer)
        check_large_enough(corpus, context=config.context, sequences=config.sequences)
        return Objective(model.config, corpus, sequences=config.sequences, context=config.context, seed=config.seed)
    end, pad = _end_and_pad(model)
    train, held_out = read_pairs(Path(job.pairs), tokenizer.encode, config.context)
    return PairObjective(train, held_out, config.sequences, config.seed, pad=pad, end=end)


def _end_and_pad(model: LanguageModel) -> tuple[int | None, int]:
    match model.config:
        case LSTMSeq2SeqConfig() | GRUSeq2SeqConfig():
            return model.config.end_token, model.config.end_token
        case EncoderDecoderConfig():
            return model.config.end_token, model.config.pad_token
    raise UsageError(f"A {type(model).__name__} does not learn from pairs: leave them out.")


def _tokenizer(job: Job, model: LanguageModel) -> Tokenizer:
    folder = job.tokenizer or job.start
    vocab_size = _smallest_vocabulary(model.config)
    tokenizer: Tokenizer = ByteTokenizer()
    if folder is not None and (job.tokenizer or (Path(folder) / "tokenizer.json").is_file()):
        tokenizer = FileTokenizer(Path(folder))
    if tokenizer.vocab_size > vocab_size:
        raise UsageError(
            f"The tokenizer has {tokenizer.vocab_size:,} tokens, and the model's vocab_size is {vocab_size:,}."
        )
    return tokenizer


def _smallest_vocabulary(config: Config) -> int:
    names = ("vocab_size", "source_vocab_size", "target_vocab_size")
    return min(int(getattr(config, name)) for name in names if getattr(config, name, None) is not None)


def _training_config(schedule: Schedule, model: LanguageModel) -> TrainingConfig:
    context = schedule.context or min(model.context or 512, 512)
    if model.context is not None and context > model.context:
        raise UsageError(f"training.context ({context:,}) is more than the model's context of {model.context:,}.")
    steps = schedule.steps or max(1, (schedule.tokens or 0) // (schedule.sequences * context))
    every = {max(1, round(steps * index / schedule.measure)) for index in range(1, schedule.measure + 1)}
    values = schedule.model_dump(exclude={"tokens", "measure"})
    values |= {"steps": steps, "context": context, "evaluate_at": every}
    values["micro_sequences"] = schedule.micro_sequences or schedule.sequences
    return validate(TrainingConfig, values, where="training")


def check_trainable(model: LanguageModel, config: TrainingConfig) -> None:
    """Raise UsageError where a model cannot be trained as the configuration says."""
    if isinstance(model, Decoder):
        return
    if config.recompute:
        raise UsageError("recompute is there for decoders only.")
    if config.micro_sequences < config.sequences and any(layer.router.coefficients for layer in model.moe_layers):
        raise UsageError("Micro-batches with experts are there for decoders only: leave micro_sequences out.")
