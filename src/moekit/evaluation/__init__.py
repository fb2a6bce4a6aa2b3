"""How well a model predicts a text: bits per byte and perplexity, the same way for every family."""

from moekit.evaluation.choose_scorer import scorer_of
from moekit.evaluation.evaluate_model import evaluate
from moekit.evaluation.score import Evaluation, LineScorer, WindowScorer, score_documents

__all__ = ["Evaluation", "LineScorer", "WindowScorer", "evaluate", "score_documents", "scorer_of"]
