"""How well a model predicts a text: bits per byte and perplexity, the same way for every family."""

from moekit.evaluation.score import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
