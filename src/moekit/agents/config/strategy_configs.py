"""What the YAML file of agents says of each strategy: a class a kind.

A strategy's name can stand wherever a member's can. `names()` of a configuration are those it may ask, so that unknown
ones and circles are found before any call.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from moekit.config import Config
from moekit.config.config_base import Positive

Names = Annotated[tuple[str, ...], Field(min_length=1)]


def _refuse(config: Config, keys: tuple[str, ...], why: str) -> None:
    """Raise ValueError for the first of these keys that the file gives a value: it would change nothing."""
    for key in keys:
        if key in config.model_fields_set and getattr(config, key) is not None:
            raise ValueError(f"{key}: {why}")


class SingleConfig(Config):
    """One member, as it is."""

    kind: Literal["single"] = "single"
    member: str

    def names(self) -> tuple[str, ...]:
        """List the members and strategies that it asks."""
        return (self.member,)


class RouteConfig(Config):
    """Each question goes to one of several.

    Attributes:
        by: what decides: `examples` (the nearest ones), `classifier` (fitted to the examples) or `likelihood` (the
            member whom the question surprises least, per byte).
        members: who may answer.
        examples: texts by the name they go to.
        data: a file of JSON lines {"text", "member"} with more examples.
        embedding: the member that turns texts into vectors; None for hashed character n-grams, which need none.
        judges: by likelihood, the local member whose surprise counts for that of a member: because it is cheaper, or
            because endpoints do not tell theirs.
    """

    kind: Literal["route"] = "route"
    by: Literal["examples", "classifier", "likelihood"]
    members: Names
    examples: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    data: Path | None = None
    embedding: str | None = None
    judges: dict[str, str] = Field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """List the members and strategies that it asks."""
        return (*self.members, *self.judges.values(), *([self.embedding] if self.embedding else []))

    @property
    def surprised(self) -> tuple[str, ...]:
        """The member whose likelihood of a question counts, for each member."""
        return tuple(self.judges.get(name, name) for name in self.members)

    @model_validator(mode="after")
    def _has_examples(self) -> "RouteConfig":
        if self.by == "likelihood" and (self.examples or self.data or self.embedding):
            raise ValueError("by likelihood needs no examples, data or embedding")
        if self.by != "likelihood" and not self.examples and not self.data:
            raise ValueError(f"by {self.by} needs examples or data")
        if self.by != "likelihood" and self.judges:
            raise ValueError(f"by {self.by} needs no judges")
        for key, named in (("examples", self.examples), ("judges", self.judges)):
            if strangers := sorted(set(named) - set(self.members)):
                raise ValueError(f"{key}: {strangers[0]!r} is none of its members ({', '.join(self.members)})")
        return self


class SelfMoaConfig(Config):
    """Several samples of one member, put together by it or by `aggregator` (arXiv 2502.00674).

    form: `parallel`: all samples in one aggregation; `sequential`: a window of `window` samples at a time, each
    aggregation getting the best answer so far and the next samples, so that any number fits the context.
    """

    kind: Literal["self-moa"] = "self-moa"
    member: str
    samples: Annotated[int, Field(ge=1, le=1000)] = 6
    aggregator: str | None = None
    form: Literal["parallel", "sequential"] = "parallel"
    window: Annotated[int, Field(ge=2)] = 6
    quorum: PositiveInt = 1
    prompt: str | None = None

    def names(self) -> tuple[str, ...]:
        """List the members and strategies that it asks."""
        return (self.member, *([self.aggregator] if self.aggregator else []))

    @model_validator(mode="after")
    def _quorum_can_stand(self) -> "SelfMoaConfig":
        if self.quorum > self.samples:
            raise ValueError(f"quorum: {self.quorum} are more than the {self.samples} samples there are")
        return self

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> "SelfMoaConfig":
        if self.form == "parallel":
            _refuse(self, ("window",), "form: parallel puts all samples together at once; a window is for sequential")
        return self


class MoaConfig(Config):
    """Layers of proposers and an aggregator (arXiv 2406.04692).

    quorum: how many of each layer must answer. prompt: the instruction before the answers, in place of ours.
    """

    kind: Literal["moa"] = "moa"
    layers: Annotated[tuple[Names, ...], Field(min_length=1)]
    aggregator: str
    quorum: PositiveInt = 1
    prompt: str | None = None

    def names(self) -> tuple[str, ...]:
        """List the members and strategies that it asks."""
        return (*(name for layer in self.layers for name in layer), self.aggregator)

    @model_validator(mode="after")
    def _quorum_can_stand(self) -> "MoaConfig":
        smallest = min(len(layer) for layer in self.layers)
        if self.quorum > smallest:
            raise ValueError(f"quorum: {self.quorum} are more than the {smallest} proposers of a layer")
        return self


class RankConfig(Config):
    """All answer, a judge ranks, and the best answer is taken or the best ones are fused (arXiv 2306.02561).

    by: `pairwise`: the judge compares each pair in both orders; `likelihood`: the judge, a local member, says how
    probable each answer is. then: `fuse`: `aggregator`, or else the judge, writes one answer from the best `top`.
    """

    kind: Literal["rank"] = "rank"
    members: Annotated[tuple[str, ...], Field(min_length=2)]
    by: Literal["pairwise", "likelihood"] = "pairwise"
    judge: str
    then: Literal["best", "fuse"] = "best"
    aggregator: str | None = None
    top: PositiveInt = 3
    quorum: PositiveInt = 1

    def names(self) -> tuple[str, ...]:
        """List the members and strategies that it asks."""
        return (*self.members, self.judge, *([self.aggregator] if self.aggregator else []))

    @model_validator(mode="after")
    def _quorum_can_stand(self) -> "RankConfig":
        if self.quorum > len(self.members):
            raise ValueError(f"quorum: {self.quorum} are more than the {len(self.members)} members there are")
        return self

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> "RankConfig":
        if self.then == "best":
            _refuse(self, ("aggregator", "top"), "then: best fuses nothing; say then: fuse")
        return self


class EnsembleConfig(Config):
    """Local members that share a tokenizer, as one: the mixture of their next-token distributions.

    weights: of each member's distribution, None: equal.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: Annotated[tuple[str, ...], Field(min_length=2)]
    weights: tuple[Positive, ...] | None = None

    def names(self) -> tuple[str, ...]:
        """List the members and strategies that it asks."""
        return self.members

    @model_validator(mode="after")
    def _a_weight_each(self) -> "EnsembleConfig":
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"weights: {len(self.weights)} of them for {len(self.members)} members")
        return self


StrategyConfig = Annotated[
    SingleConfig | RouteConfig | SelfMoaConfig | MoaConfig | RankConfig | EnsembleConfig, Field(discriminator="kind")
]
