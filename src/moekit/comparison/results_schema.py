"""The schema of `results.json`: everything that one comparison measured, and nothing computed elsewhere.

Units: bytes, seconds, tokens, FLOPs (a multiply-add is two), bits per byte of held-out text. `None` (null) means
that the thing could not be measured, for the reason that stands beside it.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from moekit.comparison.spec.machine import Machine
from moekit.comparison.spec.model_costs import ContestantConfig
from moekit.comparison.verdict_schema import VerdictRecord
from moekit.config import ModelConfig
from moekit.core import files

SCHEMA_VERSION = 7


class Record(BaseModel):
    """Base of all records: immutable, and a key that the schema does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusDomain(Record):
    """One domain of the text."""

    name: str
    train_bytes: int
    held_out_bytes: int
    train_files: int
    held_out_files: int
    unigram_bits_per_byte: float
    measured_bytes: Annotated[
        list[int],
        Field(
            description="held-out bytes that the final figures are measured on, by part: a document, or a stretch of a "
            "long one"
        ),
    ] = []
    epochs: Annotated[float, Field(description="how often the training read this domain's text, on average")]


class LeftOutText(Record):
    """Text of one domain that was given and not used, for one reason."""

    domain: str
    reason: str
    texts: Annotated[int, Field(description="files, rows or passages")]
    bytes: Annotated[int, Field(description="of files as they lie there; 0 where it is used all the same")]
    example: Annotated[str, Field(description="the name of one of them")]


class CorpusRecord(Record):
    """The text that all contestants were trained and measured on."""

    name: str
    sha256: str
    domains: list[CorpusDomain]
    unigram_bits_per_byte: Annotated[
        float,
        Field(
            description="held-out text under byte frequencies alone, domains weighed as in the models' figures: the "
            "bar that a model must clear"
        ),
    ]
    left_out: Annotated[list[LeftOutText], Field(description="what was given and is in none of the domains")] = []


class Trial(Record):
    """One training run in the search for a contestant's learning rate."""

    contestant: str
    rate_factor: Annotated[float, Field(description="of the rule's learning rate")]
    tokens: int
    seconds: float | None
    bits_per_byte: Annotated[float | None, Field(description="null where it failed")]


class Settings(Record):
    """What all contestants had in common."""

    size: str
    budget_seconds: float | None
    tokens: Annotated[int, Field(description="training tokens a run")]
    seeds: list[int]
    batch_tokens: int
    context: int
    learning_rate: float
    learning_rate_rule: Annotated[str, Field(description="one sentence: how the learning rate was chosen")]
    trials: Annotated[list[Trial], Field(description="of the search for each contestant's own; none without one")] = []
    tuning_seconds: Annotated[float, Field(description="that the search took")] = 0.0
    schedule: str
    optimizer: str
    measured_weights: Annotated[str, Field(description="which weights the held-out text is measured with")]
    held_out_tokens: Annotated[int, Field(description="held-out tokens that the final figure is measured on")]
    company: Annotated[
        str, Field(description="one sentence: what ran beside a run while its seconds were taken, and in what order")
    ] = "one run at a time, seed by seed, the contestants of each seed in the order of the plan"


class CurvePoint(Record):
    """One point of a learning curve: what was spent on training by then, and what the model was worth."""

    step: int
    tokens: int
    flops: float
    seconds: Annotated[float, Field(description="spent in training steps alone, evaluation and saving left out")]
    bits_per_byte: Annotated[float, Field(description="on a fixed sample of the held-out text, all domains")]
    train_loss: Annotated[float, Field(description="bits per byte of training text, mean since the last point")]


class LayerRouting(Record):
    """What the router of one MoE layer did on held-out text at the end of training."""

    layer: int
    load_max_over_mean: Annotated[float, Field(description="1: perfectly even; E: all to one expert")]
    load_entropy: Annotated[float, Field(description="of the share of assignments, over log E: 1 is even")]
    dead_experts: Annotated[int, Field(description="experts that got no token at all")]
    dropped_share: Annotated[float, Field(description="of the choices that a capacity turned away")]
    mean_top_score: Annotated[float, Field(description="mean over tokens of the highest score: its confidence")]
    logit_norm: Annotated[float, Field(description="root mean square over tokens of the norm of the router's logits")]


class ExpertsByDomain(Record):
    """How the assignments of one MoE layer fall on experts, by domain of the text."""

    layer: int
    domains: list[str]
    share: Annotated[
        list[list[float]], Field(description="`share[domain][expert]` of the domain's assignments; rows sum to 1")
    ]
    mutual_information_bits: Annotated[float, Field(description="between domain and expert")]
    shuffled_mean_bits: Annotated[float, Field(description="the same with the domains of the windows shuffled")]
    shuffled_p95_bits: float


class Decode(Record):
    """How one model writes as it is served, one sequence at a time: what computes it, what it holds, and how fast."""

    engine: Annotated[
        Literal["native", "torch", "tables"],
        Field(description="what `moekit generate` computes it with, or what can be used in its place"),
    ]
    engine_reason: Annotated[str | None, Field(description="why that is not the native engine")] = None
    weight_type: Annotated[str, Field(description="of the matrices, as packed")]
    weight_bytes: int
    cache_bytes: Annotated[int, Field(description="of keys and values of `context` tokens; an LSTM's is its state")]
    context: Annotated[int, Field(description="tokens seen before the first that is timed")]
    threads: int
    round_ms: Annotated[
        list[list[float]],
        Field(description="milliseconds of each token; the models of a comparison take turns, one list a turn"),
    ]
    joules_per_token: Annotated[
        float | None,
        Field(description="of the machine's processors and memory, where the system tells them (powercap)"),
    ] = None


class ServedSize(Record):
    """A contestant's plan at a size that no cache holds: random weights, experts chosen as often as trained ones."""

    config: ModelConfig
    params_total: int
    params_active: int
    load_error: Annotated[
        float | None,
        Field(description="largest difference, over layers and experts, of shares of assignments got and wanted"),
    ] = None
    decode: Decode


class Run(Record):
    """One training run: one contestant, one seed."""

    seed: int
    status: Literal["done", "failed"]
    failure: Annotated[str | None, Field(description="why it failed, in words")] = None
    tokens: int = 0
    seconds: float | None = None
    train_tokens_per_second: float | None = None
    peak_memory_bytes: Annotated[
        int | None, Field(description="peak resident memory, less what the process held before the model was built")
    ] = None
    params_by_part: Annotated[
        dict[str, int], Field(description="of what was trained, where the configuration alone does not say (n-grams)")
    ] = {}
    weight_bytes: Annotated[int | None, Field(description="of its tables, where the configuration does not say")] = None
    bits_per_byte: float | None = None
    bits_per_byte_by_domain: dict[str, float] = {}
    bits_per_byte_as_served: Annotated[
        float | None,
        Field(
            description="the same where no capacity turns a token away, as when it is served; None: it has no capacity"
        ),
    ] = None
    bits_by_part: Annotated[
        dict[str, list[float]],
        Field(description="by domain, bits of each part of the held-out text, as `measured_bytes` counts them"),
    ] = {}
    loss_spikes: Annotated[
        int, Field(description="steps whose loss jumped 5 standard deviations above the 50 steps before")
    ] = 0
    warnings: Annotated[list[str], Field(description="layers whose routing collapsed in training, in words")] = []
    decode: Annotated[
        Decode | None, Field(description="of the trained weights, rounded to the type they are served in")
    ] = None
    decode_ms: Annotated[
        list[float], Field(description="milliseconds of each token, in calls of torch: of runs before version 7 alone")
    ] = []
    routing: list[LayerRouting] = []
    experts_by_domain: list[ExpertsByDomain] = []
    curve: list[CurvePoint] = []

    @property
    def token_ms(self) -> list[float]:
        """Milliseconds of each decoded token, in the order in which they came."""
        return [one for turn in self.decode.round_ms for one in turn] if self.decode else self.decode_ms


class Phase(Record):
    """A part of each run of a contestant that is trained as one model and then as another."""

    name: Literal["dense", "upcycled"]
    steps: int
    tokens: int
    flops_per_token: Annotated[float, Field(description="training, forward and backward, at the full context")]


class ContestantResults(Record):
    """One architecture: what its configuration says, and the means over its finished runs."""

    name: str
    description: Annotated[str, Field(description="one line in words")]
    caveat: Annotated[
        str | None, Field(description="why its bits per byte do not count: it is then held against nobody")
    ] = None
    config: ContestantConfig
    learning_rate: Annotated[float | None, Field(description="peak; null where nothing is learned by gradients")] = None
    params_total: Annotated[
        int | None, Field(description="an n-gram model's are its probabilities and backoff weights, a mean over seeds")
    ]
    params_active: Annotated[int, Field(description="those that one token needs")]
    params_by_part: dict[str, int]
    flops_per_token: Annotated[
        float,
        Field(
            description="training, forward and backward, at the full context, of the model that comes out; 0: it "
            "multiplies nothing"
        ),
    ]
    phases: Annotated[
        list[Phase], Field(description="of its runs, in order; none where it is one model from start to end")
    ] = []
    inference_flops_per_token: Annotated[float, Field(description="forward, at the full context")]
    weight_bytes: Annotated[
        int | None,
        Field(
            description="of the weights at two bytes each, as served in bf16; an n-gram model's as its tables hold it"
        ),
    ]
    train_tokens_per_second: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    bits_per_byte: float | None
    bits_per_byte_by_domain: dict[str, float]
    decode_ms_per_token_median: float | None
    decode_ms_per_token_p95: float | None
    served_size: Annotated[ServedSize | None, Field(description="its plan at a size that no cache holds")] = None
    no_served_size: Annotated[str | None, Field(description="why it was not measured at that size, in words")] = None
    curve: Annotated[list[CurvePoint], Field(description="mean over the finished runs, point by point")]
    runs: list[Run]


class Results(Record):
    """One finished comparison."""

    schema_version: int = SCHEMA_VERSION
    moekit: Annotated[str, Field(description="version")]
    created: Annotated[str, Field(description="UTC, ISO 8601")]
    command: Annotated[str, Field(description="that repeats this comparison")]
    wall_seconds: Annotated[float, Field(description="of the sitting that finished it, all measuring included")]
    corpus: CorpusRecord
    machine: Machine
    settings: Settings
    baseline: Annotated[str, Field(description="the contestant that the others are held against")]
    contestants: list[ContestantResults]
    verdict: Annotated[
        VerdictRecord | None, Field(description="all that the words of the report are made from; null in older files")
    ] = None


def write_results(results: Results, path: Path) -> None:
    """Write `results` as JSON, all of it or nothing."""
    files.write_text(path, results.model_dump_json(indent=1) + "\n")


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote; raises pydantic's ValidationError where it is anything else."""
    return Results.model_validate_json(path.read_text(encoding="utf-8"))
