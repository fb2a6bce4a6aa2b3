"""The heart: routers, balance losses, the form that routing takes, experts, and what the router did."""

from moekit.moe.balance import load_balancing_loss, smooth_load, squared_variation, z_loss
from moekit.moe.dispatch import dispatch, expert_capacity
from moekit.moe.experts import Experts
from moekit.moe.layer import MoELayer
from moekit.moe.routers import Router, new_router, without_capacity
from moekit.moe.routing import Decision, RouterInput, Routing, Sums
from moekit.moe.telemetry import RoutingStats, add_sums, collapse_text, routing_stats

__all__ = [
    "Decision",
    "Experts",
    "MoELayer",
    "Router",
    "RouterInput",
    "Routing",
    "RoutingStats",
    "Sums",
    "add_sums",
    "collapse_text",
    "dispatch",
    "expert_capacity",
    "load_balancing_loss",
    "new_router",
    "routing_stats",
    "smooth_load",
    "squared_variation",
    "without_capacity",
    "z_loss",
]
