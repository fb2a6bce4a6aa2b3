"""Writing a merge: weights as a stream, config.json, the base model's tokenizer as it is, report and model card."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moekit.convert.merging.merge_config import DRAWN_MODES, MergeConfig
from moekit.convert.merging.merge_plan import Merge
from moekit.convert.merging.model_card import model_card
from moekit.convert.merging.routing_report import RoutingReport, Text, prompts_of, routing_report
from moekit.convert.storage.streaming_writer import write_tensors
from moekit.core.errors import UsageError
from moekit.models.folder import COMPANIONS, CONFIG

REPORT, CARD, COPY = "report.json", "README.md", "merge.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to write. command: for the model card. report: whether there is one, of prompts and of `held_out` texts.

    Prompts are routed where they made the gates or where routers were trained; drawn gates know nothing of them.
    trained: what to say of the routers' training in the model card, where there was one.
    """

    command: str = ""
    held_out: Sequence[Text] = ()
    report: bool = True
    trained: str | None = None
    shard_bytes: int = 5_000_000_000
    on_bytes: Callable[[int], None] | None = None
    say: Callable[[str], None] = lambda message: None


def write_merge(merge: Merge, out: Path, options: Options | None = None) -> RoutingReport | None:
    """Write the folder `out`, all of it or nothing; gives the routing report, None where there is nothing to route.

    The same call goes on after a kill. Raises UsageError where `out` holds something, MoekitError where a source has
    changed or the disk is full.
    """
    options = options or Options()
    options.say(f"Making gates ({merge.config.gate_mode})")
    merge.gates  # noqa: B018 - what is wrong with prompts shows now and not in the midst of writing
    reports: list[RoutingReport | None] = [None]

    def fill(folder: Path) -> None:
        reports[0] = _report(merge, options)
        _write_beside(merge, folder, out.resolve().name, options, reports[0])

    options.say(f"Writing {out}")
    write_tensors(
        out,
        merge.tensors,
        shard_bytes=options.shard_bytes,
        on_bytes=options.on_bytes,
        settings=_fingerprint(merge),
        fill=fill,
    )
    return reports[0]


def _report(merge: Merge, options: Options) -> RoutingReport | None:
    # Prompts that made no gate say nothing about where texts go, and a pass through all experts takes as long as `cp`.
    asked = merge.config.gate_mode not in DRAWN_MODES or options.trained is not None
    texts = [*(prompts_of(merge) if asked else ()), *options.held_out]
    if not options.report or not texts:
        return None
    try:
        merge.encoder  # noqa: B018
    except UsageError:  # drawn gates need no tokenizer, and the plan has warned
        return None
    options.say(f"Routing {len(texts)} texts through the result")
    return routing_report(merge, texts)


def _write_beside(merge: Merge, folder: Path, title: str, options: Options, report: RoutingReport | None) -> None:
    _write(folder / CONFIG, merge.settings)
    for name in COMPANIONS:
        # As it is: a tokenizer that is loaded and saved comes out with the padding of whoever loaded it.
        if (merge.base.folder / name).is_file():
            shutil.copyfile(merge.base.folder / name, folder / name)
    _write(folder / COPY, merge.config.model_dump(mode="json", exclude_defaults=True))
    if report is not None:
        (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    card = model_card(merge, title, options.command, report, options.trained)
    (folder / CARD).write_text(card, encoding="utf-8")


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _fingerprint(merge: Merge) -> str:
    """What decides computed bytes beside the sources: gates, noise, types."""
    config: MergeConfig = merge.config
    return json.dumps([config.model_dump(mode="json"), merge.seed, merge.output.name], sort_keys=True)
