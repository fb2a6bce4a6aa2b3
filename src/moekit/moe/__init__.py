"""The heart: routers, balance losses, the form that routing takes, experts, and what the router did."""

from moekit.moe.balance import load_balancing_loss, z_loss
from moekit.moe.experts import Experts
from moekit.moe.layer import MoELayer
from moekit.moe.router import SoftmaxTopK
from moekit.moe.routing import Routing
from moekit.moe.telemetry import RoutingStats, routing_stats

__all__ = [
    "Experts",
    "MoELayer",
    "Routing",
    "RoutingStats",
    "SoftmaxTopK",
    "load_balancing_loss",
    "routing_stats",
    "z_loss",
]
