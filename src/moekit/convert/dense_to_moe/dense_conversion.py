"""One dense model to a mixture: what will be written, the writing, and the proof before it has its name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from moekit.config import Config, ModelConfig
from moekit.convert.conversion import folder_problems, json_text, write_beside
from moekit.convert.expert_channels import Mixture
from moekit.convert.gguf_companions import companion_texts
from moekit.convert.mixture_model import MixtureModel
from moekit.convert.storage.output_tensors import OutputTensor
from moekit.convert.storage.partial_folder import checksums_text, removed_where_it_fails
from moekit.convert.storage.streaming_writer import file_bytes, output_bytes, peak_memory_bytes, write_tensors
from moekit.convert.text_proof import check_text
from moekit.convert.verify import Difference, check_copied, compare, memory_bytes, probe_of, tolerance
from moekit.core.errors import MoekitError
from moekit.core.progress import Progress, Task, no_progress
from moekit.counting import count_parameters
from moekit.families import Family, describe
from moekit.models.companions import companions
from moekit.models.folder import CONFIG, type_settings
from moekit.models.stored_model import StoredModel, shapes_of

RECORD = "conversion.json"


class ExpertOptions(Config):
    """What every way to make experts of a dense model is told. top_k: of the experts that are stored."""

    experts: Annotated[int, Field(ge=1, le=100_000)] = 8
    top_k: PositiveInt = 2
    layers: Literal["every", "alternate"] | tuple[Annotated[int, Field(ge=0)], ...] = "every"
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k > self.stored_experts:
            raise ValueError(f"top_k ({self.top_k}) is larger than the {self.stored_experts} experts there are")
        if isinstance(self.layers, tuple) and not self.layers:
            raise ValueError("layers names no layer")
        return self

    @property
    def stored_experts(self) -> int:
        """How many a layer has."""
        return self.experts


class ConversionPlan(BaseModel):
    """What a conversion will write and need, found without reading a weight.

    output_bytes: of all files of the result. peak_memory_bytes: beside the interpreter and its libraries. tensors: how
    many are written.
    exact: whether the result is the same function; inexact_because says what makes it another. scale: of the experts'
    down projections. problems: what stands in the way, a sentence each.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    model_type: str
    params_total: int
    params_active: int
    output_bytes: int
    peak_memory_bytes: int
    tensors: int
    exact: bool
    inexact_because: str | None
    scale: float
    problems: list[str]


class ConversionReport(BaseModel):
    """What was written, and how far its logits are from the dense model's on `probe_tokens` tokens.

    max_logit_difference is relative to logit_std, the standard deviation of the dense model's logits.
    """

    model_config = ConfigDict(frozen=True)

    out: str
    model_type: str
    params_total: int
    params_active: int
    output_bytes: int
    exact: bool
    inexact_because: str | None
    max_logit_difference: float
    tolerance: float | None
    logit_std: float
    probe_tokens: int


@dataclass(frozen=True, kw_only=True)
class DenseConversion:
    """A dense model, and the configuration and mixtures that it is to have.

    inexact: why the result computes something else; None where it has to be the same function, which is then proved.
    settings: what the user asked for, as JSON; a run that was stopped goes on only with the same.
    """

    verb: str
    source: StoredModel
    config: ModelConfig
    family: Family
    mixtures: dict[int, Mixture]
    inexact: str | None
    scale: float
    settings: str

    @cached_property
    def model(self) -> MixtureModel:
        """What is written."""
        shapes, layout = shapes_of(self.family, self.config)
        return MixtureModel(
            base=self.source,
            config=self.config,
            shapes=shapes,
            layout=[entry for entry in layout if not entry.optional],
            mixtures=self.mixtures,
        )

    @property
    def tensors(self) -> list[OutputTensor]:
        """Its tensors."""
        return self.model.tensors

    def plan(self, out: Path) -> ConversionPlan:
        """Say what writing it to `out` takes, and what stands in the way."""
        count, needed = count_parameters(self.config), self._output_bytes()
        return ConversionPlan(
            source=str(self.source.folder),
            model_type=self.family.model_type,
            params_total=count.total,
            params_active=count.active,
            output_bytes=needed,
            peak_memory_bytes=max(
                peak_memory_bytes(self.tensors), memory_bytes(self.source.shapes, self.model.shapes) + (32 << 20)
            ),
            tensors=len(self.tensors),
            exact=self.inexact is None,
            inexact_because=self.inexact,
            scale=self.scale,
            problems=folder_problems(out, needed),
        )

    def run(self, out: Path, progress: Progress = no_progress) -> ConversionReport:
        """Write it to the new folder `out`, prove it, and only then give it that name.

        A run that was stopped goes on with the same call. Raises UsageError where `out` is taken, MoekitError where the
        disk is full, and where the result is not the same function though it has to be: then nothing is left of it.
        """
        found: list[Difference] = []

        def fill(folder: Path) -> None:
            write_beside(folder, self._texts(), self.source.folder)
            with removed_where_it_fails(out):
                found.append(self.verify(folder))

        with Task(progress, f"Writing {out}", total=output_bytes(self.tensors), unit="bytes") as task:
            write_tensors(out, self.tensors, on_bytes=task.advance, settings=self.settings, fill=fill)
        if not found:  # a run before did all but say so
            found.append(self.verify(out))
        return self._report(out, found[0])

    def verify(self, out: Path) -> Difference:
        """Compare the copied weights in `out` bit for bit, how it takes text, and its logits with the dense model's.

        Raises MoekitError where a copy is damaged, where text becomes other tokens, or where the logits differ though
        the function has to be the same.
        """
        result = StoredModel(out)
        check_copied(self.source, result)
        check_text(self.source.folder, out, self.config.vocab_size)
        difference = compare(self.source, result, probe_of(self.config.vocab_size, self.config.context))
        if self.inexact is None and not difference.relative <= self.tolerance:
            raise MoekitError(
                f"The result is not the same function as {self.source.folder}: its logits differ by "
                f"{difference.relative:.1e} of their standard deviation (at most {self.tolerance:.0e})."
            )
        return difference

    @property
    def tolerance(self) -> float:
        """How far logits may differ, in their standard deviations."""
        scales: set[float] = set()
        for mixture in self.mixtures.values():
            for slot in (*mixture.experts, *([mixture.branch] if mixture.branch else [])):
                scales |= {*slot.scales, *([slot.bias_scale] if slot.dense.bias else [])}
        return tolerance(sorted(scales), self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The type of most of the source's weights."""
        sizes: dict[torch.dtype, int] = {}
        for name, dtype in self.source.dtypes.items():
            sizes[dtype] = sizes.get(dtype, 0) + self.source.shapes[name].numel()
        return max(sizes, key=lambda dtype: sizes[dtype])

    def _report(self, out: Path, difference: Difference) -> ConversionReport:
        count = count_parameters(self.config)
        return ConversionReport(
            out=str(out),
            model_type=self.family.model_type,
            params_total=count.total,
            params_active=count.active,
            output_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
            exact=self.inexact is None,
            inexact_because=self.inexact,
            max_logit_difference=difference.relative,
            tolerance=self.tolerance if self.inexact is None else None,
            logit_std=difference.logit_std,
            probe_tokens=difference.tokens,
        )

    def _texts(self) -> dict[str, str]:
        # Not what the source's family says of it: it knew no mixture.
        kept = {key: value for key, value in self.source.settings.items() if key.endswith("_token_id")}
        _, settings = describe(self.config, self.family.model_type)
        settings |= type_settings(self.dtype)
        record = {"verb": self.verb, "source": self.source.folder.name, "options": json.loads(self.settings)}
        beside = companion_texts(self.source.folder, self.config.vocab_size)
        return {CONFIG: json_text(kept | settings), RECORD: json_text(record), **beside}

    def _output_bytes(self) -> int:
        """Count all files, the checksums included, whose length does not depend on what is in the files."""
        sizes = {name: len(text.encode()) for name, text in self._texts().items()}
        source = self.source.folder
        sizes |= {str(file.relative_to(source)): file.stat().st_size for file in companions(source)}
        sizes |= file_bytes(self.tensors)
        checksums = checksums_text({name: (size, 0) for name, size in sizes.items()})
        return sum(sizes.values()) + len(checksums.encode())


def choose_family(candidates: Sequence[ModelConfig]) -> tuple[ModelConfig, Family]:
    """Give the first configuration that a family of other tools can say; the last, as our own, if there is none."""
    for config in candidates:
        family, _ = describe(config)
        if family.layout is not None:
            break
    return config, family
