"""The equations of modified interpolated Kneser-Ney, one n-gram at a time; and small texts."""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Gram = tuple[str, ...]


class Reference:
    """Counts in dictionaries, probabilities by recursion."""

    def __init__(self, sentences: Sequence[Sequence[str]], order: int, words: Sequence[str]) -> None:
        self.order = order
        self.size = len(set(words)) + 2  # <unk> and </s>
        seen: defaultdict[Gram, int] = defaultdict(int)
        before: defaultdict[Gram, set[str]] = defaultdict(set)
        for sentence in sentences:
            tokens = ["<s>", *sentence, "</s>"]
            for end in range(2, len(tokens) + 1):
                for start in range(max(0, end - order), end):
                    gram = tuple(tokens[start:end])
                    seen[gram] += 1
                    if start:
                        before[gram].add(tokens[start - 1])
        self.counts = {
            gram: count if len(gram) == order or gram[0] == "<s>" else len(before[gram]) for gram, count in seen.items()
        }
        self.fallback: list[int] = []
        self.discounts = [self._discounts(length) for length in range(1, order + 1)]
        self.following: defaultdict[Gram, dict[str, int]] = defaultdict(dict)
        for gram, count in self.counts.items():
            self.following[gram[:-1]][gram[-1]] = count

    def _discounts(self, length: int) -> tuple[float, ...]:
        n = [0] * 5
        for gram, count in self.counts.items():
            if len(gram) == length and count < 5:
                n[count] += 1
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            found = (0.0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
            if all(1e-9 < d <= j for j, d in enumerate(found) if j):
                return found
        self.fallback.append(length)
        return (0.0, 0.5, 1.0, 1.5)

    def prob(self, word: str, context: Sequence[str]) -> float:
        """p of `word` after all of `context`."""
        gram = tuple(context)[max(0, len(context) - self.order + 1) :]
        following = self.following.get(gram, {}) if gram else self.following[()]
        lower = self.prob(word, gram[1:]) if gram else 1 / self.size
        if not following:
            return lower
        discount = self.discounts[len(gram)]
        total = sum(following.values())
        gamma = sum(discount[min(count, 3)] for count in following.values()) / total
        count = following.get(word, 0)
        return (count - discount[min(count, 3)]) / total + gamma * lower

    def log_probs(self, tokens: Sequence[str]) -> list[float]:
        """ln p of each token but the first."""
        return [math.log(self.prob(tokens[at], tokens[:at])) for at in range(1, len(tokens))]


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


def make_sentences(seed: object, lines: int = 150, words: int = 12) -> list[list[str]]:
    """Sentences of up to nine words, the likelier the sooner they come in the alphabet, often repeated."""
    source = random.Random(str(seed))
    names = [f"w{number}" for number in range(words)]
    weights = [1 / (1 + number) for number in range(words)]
    made = [source.choices(names, weights, k=source.randrange(9)) for _ in range(lines)]
    return [source.choice(made[:20]) if source.random() < 0.2 else sentence for sentence in made]


@pytest.fixture(scope="session")
def sentences() -> Callable[..., list[list[str]]]:
    return make_sentences


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of sentences."""
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(sentence) + "\n" for sentence in make_sentences("file")))
    return path
