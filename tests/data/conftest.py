"""Texts for the tests of `moekit.data`."""

import random
from collections.abc import Callable

import pytest

from moekit.data import Corpus, Document, build_corpus, embedded_documents

Prose = Callable[..., bytes]


@pytest.fixture(scope="session")
def prose() -> Prose:
    """`prose(seed, size)`: about `size` bytes of lines of random words, nothing alike between two seeds."""

    def make(seed: object, size: int = 2000) -> bytes:
        source = random.Random(str(seed))
        lines: list[str] = []
        while sum(len(line) + 1 for line in lines) < size:
            lines.append(" ".join("".join(source.choices("abcdefghij", k=5)) for _ in range(8)))
        return "\n".join((*lines, "")).encode()

    return make


@pytest.fixture(scope="session")
def small(prose: Prose) -> Corpus:
    """Three domains of 20 files, whose bytes tell them apart: the first letter of every word is the domain's."""
    return build_corpus(
        [
            Document(domain, f"{number:02}", prose((domain, number)).replace(b" ", b" " + domain.upper().encode()))
            for domain in ("x", "y", "z")
            for number in range(20)
        ],
        name="small",
    )


@pytest.fixture(scope="session")
def embedded() -> list[Document]:
    return embedded_documents()
