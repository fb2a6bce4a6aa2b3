"""The folder of one comparison: its plan, its text, its runs, and what comes out."""

from pathlib import Path

from moekit.comparison.spec.comparison_plan import ComparisonPlan
from moekit.core import files
from moekit.core.errors import MoekitError


class ComparisonFolder:
    """Say where the parts of one comparison lie.

    plan: plan.json. corpus: the folder of the text as it was when the comparison started. tuning: where the learning
    rates were searched, a comparison's folder itself. served: served.json, what was measured of the models as they are
    served. results: results.json. report: report.html. short_report: report.md. scratch: a folder that is there only
    while the speed of this machine is measured. Each run has a folder of its own, and its state, result, log and model
    in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = root / "plan.json"
        self.corpus = root / "corpus"
        self.served = root / "served.json"
        self.results = root / "results.json"
        self.report = root / "report.html"
        self.short_report = root / "report.md"
        self.tuning = root / "tuning"
        self.scratch = root / "scratch"

    def run(self, contestant: str, seed: int) -> Path:
        """Give the folder of one training run."""
        return self.root / contestant / f"seed-{seed}"

    def state(self, contestant: str, seed: int) -> Path:
        """Give the file from which a stopped run goes on."""
        return self.run(contestant, seed) / "state.safetensors"

    def result(self, contestant: str, seed: int) -> Path:
        """Give the file that a run leaves when it has ended."""
        return self.run(contestant, seed) / "result.json"

    def model(self, contestant: str, seed: int) -> Path:
        """Give the folder of the model that a run ended with, which `moekit generate` takes."""
        return self.run(contestant, seed) / "model"

    def log(self, contestant: str, seed: int) -> Path:
        """Give the file of what a run wrote to standard error."""
        return self.run(contestant, seed) / "log.txt"

    def write_plan(self, plan: ComparisonPlan) -> None:
        """Write the plan, all of it or nothing."""
        files.write_text(self.plan, plan.model_dump_json(indent=1))

    def read_plan(self) -> ComparisonPlan:
        """Read the plan; raises MoekitError where there is none, or one that this version cannot read."""
        try:
            return ComparisonPlan.model_validate_json(self.plan.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MoekitError(
                f"{self.root} holds no comparison that could be resumed (no plan.json); start one with --out."
            ) from None
        except ValueError as error:
            raise MoekitError(f"{self.plan} cannot be read: {str(error).splitlines()[0]}.") from error
