"""What answers cost, in one unit for all who are compared; and how many samples a cost buys."""

from collections.abc import Callable, Iterable
from typing import Literal

from moekit.agents.calls.budget_ledger import money
from moekit.agents.config.agents_config import AgentsConfig, LocalMemberConfig, PriceConfig
from moekit.agents.outcome.trace import Trace
from moekit.core.messages import Usage

Unit = Literal["money", "FLOPs", "tokens"]

# More samples than this hardly change a majority, however little one costs.
_MOST_SAMPLES = 64


class Costs:
    """The cost of calls: in money where all members cost some, in FLOPs where all are local, else in tokens.

    What is free cannot be made equal to anything in money, so that one price of 0 makes it FLOPs or tokens for all.
    members: all whose calls are counted. FLOPs: of the forward passes, from the models' configurations, each token
    attending to as many as its call has in all.
    """

    def __init__(self, config: AgentsConfig, members: Iterable[str]) -> None:
        self._config = config
        found = {name: config.members[name] for name in members}
        self.unit: Unit = "tokens"
        if all(member.price is not None and _costs(member.price) for member in found.values()):
            self.unit = "money"
        elif all(isinstance(member, LocalMemberConfig) for member in found.values()):
            self.unit = "FLOPs"
            paths = {name: member.path for name, member in found.items() if isinstance(member, LocalMemberConfig)}
            self._flops = {name: _flops_per_token(path) for name, path in paths.items()}

    def of(self, trace: Trace) -> float:
        """Add up the cost of all answers, each once; what came from the cache counts as when it was made.

        Calls that failed, retries and hedges are not in it, though they may have cost: they are the servers' doing of
        that day, and a replay could not count them.
        """
        return sum(self.of_call(call.name, call.usage) for call in trace.calls if call.failure is None)

    def of_call(self, name: str, usage: Usage) -> float:
        """Compute the cost of one call to a member, or to an ensemble of them."""
        if self.unit == "tokens":
            return usage.total_tokens
        return sum(self._of_member(member, usage) for member in self._config.members_of(name))

    def _of_member(self, member: str, usage: Usage) -> float:
        if self.unit == "FLOPs":
            return usage.total_tokens * self._flops[member](usage.total_tokens)
        price = self._config.members[member].price
        assert price is not None, "money is the unit where all have prices"
        return float(money(usage, price))


def samples_for(budget: float, cost: Callable[[int], float]) -> int:
    """Find how many samples the budget buys, at least 1 and at most 64. cost: of so many samples, rising."""
    count = 1
    # A hair of rounding must not cost a sample.
    while count < _MOST_SAMPLES and cost(count + 1) <= budget * (1 + 1e-9):
        count += 1
    return count


def _costs(price: PriceConfig) -> bool:
    return price.input > 0 or price.output > 0


def _flops_per_token(path: str) -> Callable[[int], int]:
    """Make what computes FLOPs for one token by the tokens that it attends to, of a folder's or a GGUF file's model."""
    # Only local models need torch.
    from pathlib import Path

    from moekit.checkpoint.gguf import is_gguf
    from moekit.counting import inference_flops_per_token
    from moekit.families.gguf import GGUFModel
    from moekit.inference.checks import decoder_config
    from moekit.models import find
    from moekit.models.folder import read_config

    config = decoder_config(GGUFModel(Path(path)).config if is_gguf(Path(path)) else read_config(find(path))[1])
    return lambda context: inference_flops_per_token(config, context)
