"""Train the ladder that docs/ladder.md quotes, or go on with it where it was stopped, and keep its record.

    .venv/bin/python benchmarks/ladder.py --out runs/ladder --budget 90m

It prints what the ladder says and writes ladder.json, with date, machine and versions, to benchmarks/results/. Without
--data the text is Python and C++ of packages that constraints.txt pins: the embedded corpus is too small for the
largest rung.
"""

import argparse
import json
import logging
import shlex
import shutil
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path

from environment import environment
from moekit.cli.quantities import parse_duration
from moekit.comparison import compare_ladder, resume_ladder
from moekit.comparison.ladder.rungs import DEFAULT_LARGEST, LadderFolder
from moekit.comparison.ladder.target_scale import parse_scale

RESULTS = Path(__file__).parent / "results"
PACKAGES = Path(sysconfig.get_path("purelib"))
TEXT = {
    "python": (["numpy", "scipy", "sympy"], ".py"),
    "c++": (["torch/include"], ".h"),
}
"""Folders of installed packages, and what their files end with, by domain."""


def gather(folder: Path) -> None:
    """Copy the sources of TEXT, without tests, to a sub-folder for each domain."""
    for domain, (roots, suffix) in TEXT.items():
        for root in roots:
            for path in sorted((PACKAGES / root).rglob(f"*{suffix}")):
                to = folder / domain / path.relative_to(PACKAGES)
                if not {"test", "tests"} & set(to.parts):
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)


def main() -> None:
    """Climb, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="90m", help="for the whole ladder")
    parser.add_argument("--size", default=DEFAULT_LARGEST, help="of the largest rung")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--at", default="1e21")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if LadderFolder(arguments.out).plan.exists():
        found = resume_ladder(arguments.out, target=parse_scale(arguments.at))
    else:
        text = arguments.out.with_name(f"{arguments.out.name}-text")
        if not arguments.data:
            gather(text)
        found = compare_ladder(
            arguments.out,
            data=arguments.data or [str(text)],
            largest=arguments.size,
            seeds=arguments.seeds,
            budget_seconds=parse_duration(arguments.budget),
            at=arguments.at,
            command=shlex.join(["python", *sys.argv]),
        )
    for sentence in [*found.sentences, *(found.at.sentences if found.at else [])]:
        print(sentence)
    path = RESULTS / f"{datetime.now(UTC).date()}-ladder.json"
    record = {"environment": environment("numpy", "scipy"), "ladder": found.model_dump(mode="json")}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
