"""Ways of answering: a class a kind, made from its configuration."""

from collections.abc import Callable, Mapping
from typing import Any

from moekit.agents.config.strategy_configs import MoaConfig, RankConfig, RouteConfig, SelfMoaConfig, SingleConfig
from moekit.agents.session import Strategy
from moekit.agents.strategies.moa import MixtureOfAgents
from moekit.agents.strategies.rank import Rank
from moekit.agents.strategies.self_moa import SelfMixtureOfAgents
from moekit.agents.strategies.single import Single
from moekit.config import Config
from moekit.core.errors import UsageError

__all__ = ["build_strategy"]


def _route(config: RouteConfig) -> Strategy:
    # numpy, which the others do not need, takes a third of a second to import.
    from moekit.agents.strategies.route import Route

    return Route(config)


_CLASSES: Mapping[type[Config], Callable[[Any], Strategy]] = {
    SingleConfig: Single,
    RouteConfig: _route,
    SelfMoaConfig: SelfMixtureOfAgents,
    MoaConfig: MixtureOfAgents,
    RankConfig: Rank,
}


def build_strategy(name: str, config: Config) -> Strategy:
    """Make the strategy that the configuration describes; raise UsageError with its name where it cannot be made."""
    try:
        return _CLASSES[type(config)](config)
    except UsageError as error:
        raise UsageError(f"strategies.{name}: {error}") from error
