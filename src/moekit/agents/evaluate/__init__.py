"""A strategy against each of its members alone, at equal cost."""

from moekit.agents.evaluate.evaluation import evaluate
from moekit.agents.evaluate.evaluation_results import AgentsEvaluation, MemberResult
from moekit.agents.evaluate.matching import MATCHES, Match
from moekit.agents.evaluate.questions import Question, read_questions

__all__ = [
    "MATCHES",
    "AgentsEvaluation",
    "Match",
    "MemberResult",
    "Question",
    "evaluate",
    "read_questions",
]
