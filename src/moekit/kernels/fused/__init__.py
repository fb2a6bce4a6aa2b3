"""Experts, and dense networks as one of them, in products of our own, compiled for the processor."""
