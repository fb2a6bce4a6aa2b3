"""What measuring a comparison's models as they are served has found, as served.json holds it."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict

from moekit.comparison.results_schema import Decode, Run, ServedSize


class ServedFigures(BaseModel):
    """Figures by contestant.

    trained: by seed, of the trained models. sizes: at the size that no cache holds. left_out: why a contestant is not
    among `sizes`, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trained: dict[str, dict[int, Decode]] = {}
    sizes: dict[str, ServedSize] = {}
    left_out: dict[str, str] = {}

    @classmethod
    def of_runs(cls, found: Mapping[tuple[str, int], Decode]) -> Self:
        """Give those of trained models, which are found by contestant and seed."""
        trained: dict[str, dict[int, Decode]] = {}
        for (name, seed), decode in found.items():
            trained.setdefault(name, {})[seed] = decode
        return cls(trained=trained)

    def with_decode(self, name: str, run: Run) -> Run:
        """Give the run of that contestant with what was found of its model."""
        decode = self.trained.get(name, {}).get(run.seed)
        return run if decode is None else run.model_copy(update={"decode": decode})
