"""Several dense models of one shape to one mixture: planned and checked before a weight is read, written, proved."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from moekit.checkpoint.read_weights import memory_of
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.config import Config
from moekit.convert.conversion import Refused, folder_problems, json_text, taken, write_beside
from moekit.convert.merging.gates import gate_problems, gates_memory_bytes, make_gates
from moekit.convert.merging.merge_config import DRAWN_MODES, DTYPES, MergeConfig, prompt_problems
from moekit.convert.merging.merged_model import MergedModel
from moekit.convert.merging.model_card import model_card
from moekit.convert.merging.output_formats import choose_output
from moekit.convert.merging.prompts import prompt_encoder
from moekit.convert.merging.router_training import RouterTraining, train_routers, training_memory_bytes
from moekit.convert.merging.routing_report import RoutingReport, Text, prompts_of, routing_report
from moekit.convert.merging.source_models import (
    adapters_outside_experts,
    difference,
    open_models,
    other_tokenizers,
    unchanged_experts,
)
from moekit.convert.storage.output_tensors import whole_tensor
from moekit.convert.storage.partial_folder import removed_where_it_fails
from moekit.convert.storage.streaming_writer import output_bytes, peak_memory_bytes, write_tensors
from moekit.convert.text_proof import check_text
from moekit.core.errors import MoekitError, UsageError
from moekit.core.progress import Progress, Task, no_progress
from moekit.data import Document, read_sources
from moekit.models.folder import CONFIG
from moekit.models.stored_model import StoredModel

REPORT, CARD, COPY = "report.json", "README.md", "merge.json"
_log = logging.getLogger(__name__)


class MergePlan(BaseModel):
    """What a merge will write and need, found without reading a weight.

    architecture: the format. output_bytes: of the files of weights. peak_memory_bytes: beside the interpreter and its
    libraries, the training of routers included where it is asked for. tensors: how many are written. problems: what
    stands in the way, a sentence each; warnings: what one should know. Where there are problems with the models or the
    options, all figures are None.
    """

    model_config = ConfigDict(frozen=True)

    output_bytes: int | None = None
    peak_memory_bytes: int | None = None
    tensors: int | None = None
    architecture: str | None = None
    experts: int | None = None
    problems: list[str] = []
    warnings: list[str] = []


class RouterTrainingReport(BaseModel):
    """How the routers' training went. nats_before, nats_after: nats a token, of the first tenth of steps and the last.

    data: where the text came from. tensors_unchanged: how many written tensors beside routers were compared with the
    untrained merge, bit for bit.
    """

    model_config = ConfigDict(frozen=True)

    steps: int
    data: list[str]
    nats_before: float
    nats_after: float
    tensors_unchanged: int = 0


class MergeReport(BaseModel):
    """What was written. accuracy: as in `RoutingReport`. routing: where texts go; None where no text was routed."""

    model_config = ConfigDict(frozen=True)

    folder: str
    architecture: str
    gate_mode: str
    seed: int
    experts: int
    accuracy: list[float] | None
    router_training: RouterTrainingReport | None
    routing: RoutingReport | None = Field(exclude=True)


class MergeOptions(Config):
    """What a merge is told beside its recipe: the options of `verbs.merge`.

    train_router: sources of text that the routers are trained on, in `train_steps` steps; none: they are not trained.
    report: whether there is a routing report, of prompts and of the text of `held_out`: prompts are routed where they
    made the gates or where routers were trained; drawn gates know nothing of them. command: for the model card.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    fused: bool = False
    train_router: tuple[str, ...] = ()
    train_steps: PositiveInt = 200
    held_out: tuple[str, ...] = ()
    report: bool = True
    command: str = ""
    shard_bytes: int = 5_000_000_000


@dataclass(frozen=True, kw_only=True)
class MergeConversion:
    """A merge that can be written: the models are there, fit each other and the output."""

    merged: MergedModel
    options: MergeOptions
    warnings: list[str]

    def plan(self, out: Path) -> MergePlan:
        """Say what writing it to `out` takes, and what stands in the way."""
        merged = self.merged
        peak = max(peak_memory_bytes(merged.tensors), gates_memory_bytes(merged.recipe, merged.base))
        if self.options.train_router:
            peak = max(peak, training_memory_bytes(merged))
        needed = output_bytes(merged.tensors, shard_bytes=self.options.shard_bytes)
        return MergePlan(
            output_bytes=needed,
            peak_memory_bytes=peak,
            tensors=len(merged.tensors),
            architecture=merged.output.name,
            experts=len(merged.recipe.experts),
            problems=[f"--out: {problem}" for problem in folder_problems(out, needed)],
            warnings=self.warnings,
        )

    def run(self, out: Path, progress: Progress = no_progress) -> MergeReport:
        """Make the gates, train routers where that is asked for, and write the folder `out`, all of it or nothing.

        The same call goes on after a kill. Raises UsageError where `out` holds something, MoekitError where a source
        has changed, the disk is full, or where trained routers did not leave everything else as it is.
        """
        if problems := taken(out) if self.options.train_router else []:
            raise Refused(problems)  # before the routers are trained
        for warning in unchanged_experts(self.merged.recipe, self.merged.base, self.merged.experts):
            _log.warning("Note: %s", warning)
        documents, held_out = _documents(self.options.train_router), _documents(self.options.held_out)
        merged, trained = make_gates(self.merged), None
        if documents:
            training = RouterTraining(steps=self.options.train_steps)
            learnt = train_routers(merged, documents, training, progress)
            merged = learnt.merged
            trained = RouterTrainingReport(
                steps=training.steps,
                data=list(self.options.train_router),
                nats_before=learnt.before,
                nats_after=learnt.after,
            )
        routing: list[RoutingReport | None] = [None]

        def fill(folder: Path) -> None:
            routing[0] = self._routing(merged, held_out, trained is not None)
            self._write_beside(merged, folder, out.resolve().name, routing[0], trained)
            with removed_where_it_fails(out):
                check_text(merged.base.folder, folder, merged.config.vocab_size)

        shards = self.options.shard_bytes
        total = output_bytes(merged.tensors, shard_bytes=shards)
        with Task(progress, f"Writing {out}", total=total, unit="bytes") as task:
            write_tensors(
                out,
                merged.tensors,
                shard_bytes=shards,
                on_bytes=task.advance,
                settings=run_settings(merged),
                fill=fill,
            )
        if trained is not None:
            unchanged = replace(self, merged=merged).verify(out) - len(merged.router_names)
            trained = trained.model_copy(update={"tensors_unchanged": unchanged})
        return MergeReport(
            folder=str(out),
            architecture=merged.output.name,
            gate_mode=merged.recipe.gate_mode,
            seed=merged.seed,
            experts=len(merged.recipe.experts),
            accuracy=routing[0].accuracy if routing[0] else None,
            router_training=trained,
            routing=routing[0],
        )

    def verify(self, out: Path) -> int:
        """Compare every tensor in the folder `out` with what this merge gives, bit for bit; count them.

        Raises MoekitError naming the first that is something else, or where text becomes other tokens. Routers that
        were trained are compared only where `merged` holds them.
        """
        written, merged = StoredTensors.open(out), make_gates(self.merged)
        check_text(merged.base.folder, out, merged.config.vocab_size)
        for tensor in merged.tensors:
            info = written[tensor.name]
            found = torch.empty(info.shape, dtype=info.dtype)
            written.read(tensor.name, 0, memory_of(found))
            expected = whole_tensor(tensor).contiguous()
            if found.dtype is not expected.dtype or bytes(memory_of(found)) != bytes(memory_of(expected)):
                raise MoekitError(f"{info.file}: {tensor.name!r} is not what the merge makes of its models.")
        return len(merged.tensors)

    def _routing(self, merged: MergedModel, held_out: Sequence[Document], trained: bool) -> RoutingReport | None:
        # Prompts that made no gate say nothing of where texts go, and a pass through all experts takes as long as `cp`.
        asked = merged.recipe.gate_mode not in DRAWN_MODES or trained
        texts = prompts_of(merged.recipe) if asked else []
        texts += [Text(f"held out: {one.domain}", one.text.decode("utf-8")) for one in held_out]
        if not self.options.report or not texts:
            return None
        try:
            encoder = prompt_encoder(merged.base)
        except UsageError:  # drawn gates need no tokenizer, and the plan has warned
            return None
        _log.info("Routing %d texts through the result", len(texts))
        return routing_report(merged, encoder, texts)

    def _write_beside(
        self,
        merged: MergedModel,
        folder: Path,
        title: str,
        routing: RoutingReport | None,
        trained: RouterTrainingReport | None,
    ) -> None:
        recipe = merged.recipe.model_dump(mode="json", exclude_defaults=True)
        texts = {CONFIG: json_text(dict(merged.output.settings)), COPY: json_text(recipe)}
        if routing is not None:
            texts[REPORT] = routing.model_dump_json(indent=2) + "\n"
        texts[CARD] = model_card(merged, title, self.options.command, routing, _said(trained))
        write_beside(folder, texts, merged.base.folder)


def plan_merging(recipe: MergeConfig, options: MergeOptions | None = None) -> MergeConversion:
    """Open the models and check all that can be known without reading a weight.

    Raises `Refused` with everything that stands in the way.
    """
    options, problems = options or MergeOptions(), prompt_problems(recipe)
    base, experts = open_models(recipe, problems)
    if base is None:
        raise Refused(problems)
    for index, expert in enumerate(experts):
        if expert is not None and (reason := difference(recipe, expert, base)):
            where = f"{recipe.key(index)}.source_model: {recipe.all_experts[index].source_model}"
            problems.append(f"{where} does not fit: {reason}.")
    dtype, output = recipe.dtype or _stored_dtype(base), None
    try:
        output = choose_output(recipe, base, dtype)
        if options.fused and not output.family.other_layouts:
            problems.append(f"--fused: nothing reads {output.name} with all experts of a layer in one tensor.")
    except MoekitError as error:
        problems.append(str(error))
    problems += gate_problems(recipe, base)
    if problems or output is None:
        raise Refused(problems)
    merged = MergedModel(
        recipe=recipe,
        output=output,
        base=base,
        experts=tuple(expert for expert in experts if expert is not None),
        dtype_of_all=getattr(torch, dtype) if dtype else None,
        seed=options.seed,
        fused=options.fused,
    )
    warnings = [*_warnings(recipe, base), *adapters_outside_experts(recipe, merged.experts)]
    warnings += other_tokenizers(recipe, base, merged.experts)
    return MergeConversion(merged=merged, options=options, warnings=warnings)


def _documents(sources: Sequence[str]) -> list[Document]:
    return read_sources(sources, say=_log.warning) if sources else []


def _warnings(recipe: MergeConfig, base: StoredModel) -> list[str]:
    """Say what one should know of the result."""
    found = []
    has_tokenizer = base.config.vocab_size == 256 or (base.folder / "tokenizer.json").is_file()
    if recipe.gate_mode in DRAWN_MODES and not has_tokenizer:
        found.append(f"base_model: {recipe.base_model} has no tokenizer.json, so the result has none either.")
    names = {str(expert.source_model) for expert in recipe.experts}
    if len(recipe.experts) > 1 and len(names) == 1 and all(one.noise_scale is None for one in recipe.experts):
        found.append(
            f"experts: all are {names.pop()}, so that the result computes what one of them does until it is trained."
        )
    return found


def _stored_dtype(base: StoredModel) -> str | None:
    """Give the type that the base model's config.json names."""
    value = base.settings.get("dtype") or base.settings.get("torch_dtype")
    name = str(value).removeprefix("torch.") if value else None
    return name if name in DTYPES else None


def run_settings(merged: MergedModel) -> str:
    """Say what decides computed bytes beside the sources, so that a run with other gates, noise or types is another."""
    values: list[Any] = [merged.recipe.model_dump(mode="json"), merged.seed, merged.output.format.name]
    return json.dumps(values, sort_keys=True)


def _said(trained: RouterTrainingReport | None) -> str | None:
    """Say of the routers' training what the model card has to tell."""
    if trained is None:
        return None
    return (
        f"then {trained.steps} steps of training on {', '.join(trained.data)}, all else frozen: "
        f"{trained.nats_before:.3f} to {trained.nats_after:.3f} nats a token"
    )
