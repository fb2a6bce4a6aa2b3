"""Comparisons with runs side by side, killed or stopped at random points: resumed, they end with the same bits.

Each comparison is killed twice and then resumed to its end. `MOEKIT_KILLS=20` kills ten of them; without it, one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from moekit.comparison import experiment
from moekit.comparison.results_schema import Results
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import PlannedLanes, new_plan
from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestants import Contestant, Size, own_contestants
from moekit.config import DenseConfig, MoEConfig, SoftmaxTopKConfig
from moekit.data import Corpus, Document, build_corpus

KILLS = int(os.environ.get("MOEKIT_KILLS", "2"))
TINY = Size(width=16, depth=2, heads=2, kv_heads=1, hidden=32, context=16, sequences=4)
STEPS = 60
CONTESTANTS = [
    Contestant(name="dense", layers=(DenseConfig(width=32),)),
    Contestant(name="moe", layers=(MoEConfig(experts=4, expert_width=16, router=SoftmaxTopKConfig(top_k=2)),)),
    own_contestants(TINY)["ngram"],
]

# Ctrl-C is listened to, also where whoever started the tests has it ignored, as shells do for work in the background.
_RESUME = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from moekit.comparison import experiment
from moekit.core.errors import MoekitError
try:
    experiment.resume(sys.argv[1])
except MoekitError as error:
    sys.exit(error.exit_status)
"""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    documents = [
        Document(domain=domain, name=f"{index}.txt", text=f"{index} {word} {index * 7} ".encode() * 60)
        for domain, word in (("cats", "the cat sat on"), ("sums", "1 + 2 = 3;"))
        for index in range(12)
    ]
    return build_corpus(documents, name="tiny")


def prepare(corpus: Corpus, root: Path) -> ComparisonFolder:
    """A folder with a plan of two lanes that saves states after every step, and nothing done yet."""
    folder = ComparisonFolder(root)
    corpus.save(folder.corpus)
    plan = new_plan(
        ComparisonRequest(
            contestants=CONTESTANTS,
            baseline="dense",
            size_name="tiny",
            size=TINY,
            seeds=2,
            command="moekit compare",
            tokens=STEPS * TINY.sequences * TINY.context,
        )
    )
    # The precision is measured for each plan, and on a busy machine not always the same.
    training = plan.training.model_copy(update={"checkpoint_seconds": 0.0, "precision": "bfloat16"})
    folder.write_plan(plan.model_copy(update={"training": training, "lanes": PlannedLanes(count=2, threads=1)}))
    return folder


def bits(folder: ComparisonFolder, results: Results) -> dict[str, object]:
    """All that runs found out, and what their logs say, without times and memory."""
    found: dict[str, object] = {}
    for contestant in results.contestants:
        for run in contestant.runs:
            figures = run.model_dump(
                include={
                    "seed": True, "status": True, "tokens": True, "params_by_part": True, "weight_bytes": True,
                    "bits_per_byte": True, "bits_per_byte_by_domain": True, "loss_spikes": True, "warnings": True,
                    "routing": True, "experts_by_domain": True,
                    "curve": {"__all__": {"step", "tokens", "flops", "bits_per_byte", "train_loss"}},
                }
            )  # fmt: skip
            log = folder.run(contestant.name, run.seed) / "steps.jsonl"
            steps = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            found[f"{contestant.name} {run.seed}"] = (
                figures,
                [{name: value for name, value in step.items() if name != "seconds"} for step in steps],
            )
    return found


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], float]:
    """The bits of a comparison that nobody stopped, and the seconds that it took as a process of its own."""
    folder = prepare(corpus, tmp_path_factory.mktemp("undisturbed") / "run")
    began = time.monotonic()
    assert start(folder).wait(timeout=300) == 0
    seconds = time.monotonic() - began
    results = experiment.resume(folder.root)
    assert all(run.status == "done" for one in results.contestants for run in one.runs)
    found = bits(folder, results)
    assert len(found) == 2 * len(CONTESTANTS)
    return found, seconds


def start(folder: ComparisonFolder) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _RESUME, str(folder.root)], start_new_session=True)


def workers(process: subprocess.Popen[bytes]) -> Sequence[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("first", range(0, KILLS, 2))
def test_killed_at_random_points(
    first: int, corpus: Corpus, undisturbed: tuple[dict[str, object], float], tmp_path: Path
) -> None:
    """Once its process group alone, so that workers find out by themselves, and once all at the same moment."""
    expected, seconds = undisturbed
    folder = prepare(corpus, tmp_path / "run")
    draws = random.Random(first)
    for whole_tree in (False, True):
        process = start(folder)
        time.sleep(draws.uniform(0.15, 0.9) * seconds)
        tree = workers(process)
        os.killpg(process.pid, signal.SIGKILL)
        if whole_tree:
            for worker in tree:
                worker.kill()
        process.wait()
    assert bits(folder, experiment.resume(folder.root)) == expected
    assert not folder.scratch.exists()


def test_stopped_while_runs_train(corpus: Corpus, undisturbed: tuple[dict[str, object], float], tmp_path: Path) -> None:
    """All workers save their state and end before the comparison does."""
    expected, _ = undisturbed
    folder = prepare(corpus, tmp_path / "run")
    process = start(folder)
    deadline = time.monotonic() + 120
    while not list(folder.root.glob("*/seed-*/state.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    tree = workers(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in tree)
    assert bits(folder, experiment.resume(folder.root)) == expected
