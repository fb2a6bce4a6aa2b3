"""`moekit.train`: one training, from the model's configuration to the saved model, in one call."""

import json
import logging
import time
from pathlib import Path

import torch
from pydantic import BaseModel

from moekit.config import (
    Config,
    EncoderDecoderConfig,
    GRUSeq2SeqConfig,
    LSTMSeq2SeqConfig,
    NGramConfig,
)
from moekit.core import files
from moekit.core.errors import UsageError
from moekit.core.progress import Progress, Task, no_progress
from moekit.core.validation import validate
from moekit.data import Corpus, large_enough, load_corpus
from moekit.data.text_pairs import read_pairs
from moekit.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer
from moekit.data.tokens import tokenized
from moekit.families import preset
from moekit.models import Decoder, LanguageModel, NGram, build, load
from moekit.training.job import Schedule, TrainingJob, read_job
from moekit.training.loop import StepReport, Trainer
from moekit.training.objectives import Objective, PairObjective
from moekit.training.step import held_out_bits
from moekit.training.step_log import StepLog
from moekit.training.training_config import TrainingConfig

_logger = logging.getLogger(__name__)


class TrainingResult(BaseModel):
    """The outcome of a training.

    Attributes:
        held_out_bits: loss per prediction on held-out text, in bits; for bytes read in order, bits per byte.
    """

    model: str
    parameters: int
    tokens: int
    seconds: float
    held_out_bits: float | None


def train(job: TrainingJob | str | Path, out: str | Path, *, progress: Progress = no_progress) -> TrainingResult:
    """Train one model on its own objective, and save it.

    Decoders and LSTMs predict the next token, encoders masked tokens, XLNet tokens in random order, encoder-decoders
    spans cut out of the text; an n-gram model is counted. A training that was stopped or killed goes on with the same
    call, and ends with the same bits as one that was never stopped. Held-out losses and warnings go to the logger
    `moekit.training`.

    Args:
        job: what to train and on what, or the YAML file that says so.
        out: a folder for everything; the model is saved in `out`/model, an n-gram model in `out`/model.arpa.
        progress: gets how many steps are taken.

    Returns:
        Where the model is, its size, and what the training took and reached.

    Raises:
        UsageError: where the job is wrong, the text is too short, or `out` holds another training or one that ended.
        Interrupted: where it was stopped; all state is saved.
        TrainingFailed: where the loss is not a number any more.

    Examples:
        >>> import moekit
        >>> from moekit.config import LSTMConfig
        >>> from moekit.training import Schedule, TrainingJob
        >>> model = LSTMConfig(vocab_size=256, embedding_width=16, widths=(16,))
        >>> job = TrainingJob(model=model, data=("essays",), training=Schedule(steps=20, sequences=4, context=32))
        >>> result = moekit.train(job, "runs/lstm")
        >>> print(result.model, result.held_out_bits)
    """
    job = job if isinstance(job, TrainingJob) else read_job(Path(job))
    folder = Path(out)
    _keep_job(job, folder)
    if isinstance(job.model, NGramConfig):
        return _train_ngram(job.model, _corpus(job), folder)
    return _train(job, folder, progress)


def _keep_job(job: TrainingJob, out: Path) -> None:
    """Write the job down before anything else, so that another one does not go on in its place."""
    file = out / "job.json"
    if file.exists() and validate(TrainingJob, json.loads(file.read_text(encoding="utf-8")), where=str(file)) != job:
        raise UsageError(f"{out} holds another training (see {file}); name another folder.")
    if (out / "model").exists():
        raise UsageError(f"{out / 'model'} is there: this training has ended; name another folder.")
    files.write_text(file, job.model_dump_json(indent=1))


def _keep_data(sha256: str, out: Path, *, is_begun: bool) -> None:
    """Write down what text the training began with; raise UsageError where it goes on with another one."""
    file = out / "data.json"
    if is_begun and not file.exists():
        _logger.info("%s says not what text it began with: an older version began it. It goes on.", out)
    elif is_begun and json.loads(file.read_text(encoding="utf-8")).get("sha256") != sha256:
        raise UsageError(
            f"The text has changed since the training in {out} began: what was held out may be trained on now. Go on "
            "with the text and the tokenizer as they were, or name another folder."
        )
    files.write_text(file, json.dumps({"sha256": sha256}) + "\n")


def _train_ngram(config: NGramConfig, corpus: Corpus, out: Path) -> TrainingResult:
    begin = time.perf_counter()
    documents = [part for text in corpus.domains for part in text.train.tobytes().split(b"\0") if part]
    if config.unit == "words":
        lines = (line for document in documents for line in document.decode("utf-8", errors="replace").split("\n"))
        model = NGram.train_words(lines, order=config.order, say=_logger.info)
    else:
        model = NGram.train_bytes(documents, order=config.order, say=_logger.info)
    path = out / "model.arpa"
    model.save(path)
    return TrainingResult(
        model=str(path),
        parameters=sum(model.ngrams),
        tokens=sum(map(len, documents)),
        seconds=time.perf_counter() - begin,
        held_out_bits=None,
    )


def _train(job: TrainingJob, out: Path, progress: Progress) -> TrainingResult:
    assert job.training is not None
    torch.manual_seed(job.training.seed)
    model = _model(job)
    config = _training_config(job.training, model)
    check_trainable(model, config)
    objective = _objective(job, model, config)
    state = out / "state.safetensors"
    _keep_data(objective.data_sha256(), out, is_begun=state.exists())
    measured = objective.held_out(8192)
    trainer = Trainer(
        model.train(),
        config,
        objective.train,
        lambda averaged: held_out_bits(averaged, measured, config),
        state,
        StepLog(out),
    )
    with Task(progress, "Training", total=config.steps, unit="steps") as task:
        done = trainer.run(_StepTeller(task))
    trained = trainer.averaged.eval()
    folder = job.start or job.tokenizer
    trained.origin = Path(folder) if folder else None
    trained.save(out / "model")
    return TrainingResult(
        model=str(out / "model"),
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        tokens=done.step * config.step_tokens,
        seconds=done.seconds,
        held_out_bits=done.points[-1].bits_per_byte if done.points else None,
    )


class _StepTeller:
    """Tell of each step as progress, and of what is measured or goes wrong as messages."""

    def __init__(self, task: Task) -> None:
        self._task, self._measured = task, ""

    def __call__(self, report: StepReport) -> None:
        if report.bits_per_byte is not None:
            self._measured = f" · held out {report.bits_per_byte:.3f}"
            _logger.info("  step %d: loss %.3f%s", report.step, report.loss, self._measured)
        for warning in report.warnings:
            _logger.warning("  %s", warning)
        self._task.set(report.step, note=f"loss {report.loss:.3f}{self._measured}")


def _model(job: TrainingJob) -> LanguageModel:
    if job.start is not None:
        loaded = load(job.start, dtype=torch.float32)
        if not isinstance(loaded, LanguageModel):
            raise UsageError(f"{job.start} is an n-gram model, which is counted anew, not trained further.")
        return loaded
    config = preset(job.preset).config if job.preset is not None else job.model
    assert config is not None
    return build(config)


def _corpus(job: TrainingJob) -> Corpus:
    return load_corpus(job.data, text_column=job.text_column, domain_column=job.domain_column, say=_logger.warning)


def _objective(job: TrainingJob, model: LanguageModel, config: TrainingConfig) -> Objective | PairObjective:
    tokenizer = _tokenizer(job, model)
    if job.pairs is None:
        corpus = large_enough(
            tokenized(_corpus(job), tokenizer), context=config.context, sequences=config.sequences, say=_logger.warning
        )
        return Objective(model.config, corpus, sequences=config.sequences, context=config.context, seed=config.seed)
    end, pad = _end_and_pad(model)
    train, held_out = read_pairs(Path(job.pairs), tokenizer.encode, config.context, say=_logger.warning)
    return PairObjective(train, held_out, config.sequences, config.seed, pad=pad, end=end)


def _end_and_pad(model: LanguageModel) -> tuple[int | None, int]:
    match model.config:
        case LSTMSeq2SeqConfig() | GRUSeq2SeqConfig():
            return model.config.end_token, model.config.end_token
        case EncoderDecoderConfig():
            return model.config.end_token, model.config.pad_token
    raise UsageError(f"A {type(model).__name__} does not learn from pairs: leave them out.")


def _tokenizer(job: TrainingJob, model: LanguageModel) -> Tokenizer:
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
