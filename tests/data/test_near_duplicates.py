"""Near-duplicates: joined where they are truly alike, not where they share what their source shares, nor by chains."""

import random
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import combinations

import pytest

from moekit.data import Document, build_corpus, split_documents
from moekit.data.near_duplicates import NEAR_DUPLICATE, NearDuplicates
from moekit.data.shingles import shingle_sets, without_shared

Prose = Callable[..., bytes]


def words(seed: object, count: int) -> str:
    source = random.Random(str(seed))
    return " ".join("".join(source.choices("abcdefghijklmnop", k=4)) for _ in range(count))


def phrases(text: str) -> set[tuple[str, ...]]:
    found = text.split()
    return {tuple(found[place : place + 5]) for place in range(len(found) - 4)}


def jaccard(one: str, other: str) -> float:
    mine, theirs = phrases(one), phrases(other)
    return len(mine & theirs) / len(mine | theirs)


def groups(texts: Sequence[str]) -> list[list[int]]:
    return NearDuplicates([Document("d", f"{index:05}", text.encode()) for index, text in enumerate(texts)]).groups


def kept(texts: Sequence[str]) -> float:
    split = split_documents([Document("d", f"{index:05}", text.encode()) for index, text in enumerate(texts)], seed=0)
    return sum(len(one.text) for one in (*split.train, *split.held_out)) / sum(map(len, texts))


def test_similarity_is_that_of_the_sets() -> None:
    texts = [words("a", 60), words("a", 90), words("b", 40) + " " + words("a", 40), words("c", 3)]
    sets = shingle_sets(text.encode() for text in texts)
    for one, other in combinations(range(3), 2):
        assert sets.similarity(one, other) == pytest.approx(jaccard(texts[one], texts[other]))
    assert [len(sets[index]) for index in range(4)] == [56, 86, 76, 1]


def test_long_texts_are_cut_into_pieces_and_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from moekit.data import shingles

    texts = [words(seed, 500) for seed in range(3)]
    whole = shingle_sets(text.encode() for text in texts)
    monkeypatch.setattr(shingles, "_PIECE", 100)
    monkeypatch.setattr(shingles, "_BATCH", 50)
    pieces = shingle_sets(text.encode() for text in texts)
    assert all((whole[index] == pieces[index]).all() for index in range(3))


@pytest.mark.parametrize("header", [50, 225, 600])
@pytest.mark.parametrize("count", [20, 120, 400])
def test_a_header_that_all_share_makes_no_copies(header: int, count: int) -> None:
    """Bodies of 70 words, which are up to nine tenths header."""
    texts = [f"{words('licence', header)}\n{words(index, 70)}" for index in range(count)]
    assert groups(texts) == [[index] for index in range(count)]
    assert kept(texts) == 1


@pytest.mark.parametrize("templates", [1, 3, 8])
def test_rows_of_templates_are_no_copies(templates: int) -> None:
    texts = [
        f"{words(('before', index % templates), 40)} {words(index, 20)} {words(('after', index % templates), 40)}"
        for index in range(400)
    ]
    assert groups(texts) == [[index] for index in range(400)]


@pytest.mark.parametrize("count", [3, 12, 40])
def test_versions_of_one_text_are_copies(count: int) -> None:
    texts = [f"{words('text', 600)} this is the end of version {index}" for index in range(count)]
    assert groups(texts) == [list(range(count))]


def test_copies_among_texts_with_a_header_are_found() -> None:
    texts = [f"{words('licence', 200)}\n{words(index // 2, 80)} {words(index, 6)}" for index in range(60)]
    assert groups(texts) == [[index, index + 1] for index in range(0, 60, 2)]


def test_no_chains() -> None:
    """Each text shares two thirds of its words with the next one, and nothing with the one after the next but one."""
    parts = [words(index, 100) for index in range(12)]
    texts = [" ".join(parts[index : index + 5]) for index in range(8)]
    assert jaccard(texts[0], texts[1]) > NEAR_DUPLICATE > jaccard(texts[0], texts[2])
    found = groups(texts)
    assert len(found) > 1
    for group in found:
        assert all(jaccard(texts[group[0]], texts[member]) >= NEAR_DUPLICATE for member in group)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_alike_is_not_on_both_sides_though_it_is_no_group(seed: int) -> None:
    """What is near a held-out text without being of its group is left out, and counted."""
    parts = {(chain, index): words((chain, index), 60) for chain in range(12) for index in range(12)}
    texts = [" ".join(parts[chain, index + place] for place in range(5)) for chain in range(12) for index in range(8)]
    documents = [Document("d", f"{index:03}", text.encode()) for index, text in enumerate(texts)]
    split = split_documents(documents, seed=seed)
    alike = [
        (one.name, other.name)
        for one in split.train
        for other in split.held_out
        if jaccard(one.text.decode(), other.text.decode()) > 0.6
    ]
    assert not alike
    assert split.left_out
    assert {dropped.reason.text for dropped in split.left_out} == {"near-duplicates of held-out text"}
    sizes = sum(len(one.text) for one in (*split.train, *split.held_out)) + sum(one.bytes for one in split.left_out)
    assert sizes == sum(map(len, texts))


def test_random_texts_against_all_pairs() -> None:
    """Groups hold the pairs that are clearly alike and none that is not, as comparing all pairs finds them."""
    source = random.Random(7)
    texts = []
    for index in range(60):
        base = words(index, source.randint(20, 200)).split()
        texts.append(" ".join(base))
        for _ in range(source.randint(0, 2)):
            changed = list(base)
            for place in source.sample(range(len(base)), k=len(base) // source.choice([40, 15, 8, 5])):
                changed[place] = "other"
            texts.append(" ".join(changed))
    found = groups(texts)
    group_of = {member: index for index, group in enumerate(found) for member in group}
    for group in found:
        assert all(jaccard(texts[group[0]], texts[member]) >= NEAR_DUPLICATE for member in group)
    alike = [pair for pair in combinations(range(len(texts)), 2) if jaccard(texts[pair[0]], texts[pair[1]]) > 0.75]
    assert len(alike) > 10
    assert all(group_of[one] == group_of[other] for one, other in alike)


def test_the_shared_part_is_left_in_where_a_source_has_few_texts() -> None:
    texts = [f"{words('header', 100)} {words(index, 100)}" for index in range(19)]
    sets = shingle_sets(text.encode() for text in texts)
    assert without_shared(sets, ["d"] * 19) is sets
    more = shingle_sets(text.encode() for text in [*texts, f"{words('header', 100)} {words(19, 100)}"])
    assert len(without_shared(more, ["d"] * 20)[0]) == len(more[0]) - 96
    # What two sources share with each other is no header.
    assert without_shared(more, ["d"] * 10 + ["e"] * 10) is more


def test_memory_grows_with_the_text() -> None:
    """Rows of 200 bytes: an index of objects would take 13 kB for each of them."""
    rows = 1500
    documents = [Document("d", str(index), words(index, 40).encode()) for index in range(rows)]
    build_corpus(documents[:50], name="warm")
    tracemalloc.start()
    build_corpus(documents, name="rows")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / rows < 2500


@pytest.mark.parametrize("separator", ["\n", " ", ". "], ids=["lines", "one line", "sentences"])
@pytest.mark.parametrize("copies", [2, 3])
def test_a_file_that_repeats_itself_is_not_on_both_sides(separator: str, copies: int) -> None:
    once = separator.join(words(index, 12) for index in range(300))
    again = once.replace(" ", "  ").upper() if copies == 3 else once
    text = separator.join([once, *[again] * (copies - 1)])
    split = split_documents([Document("d", "a", text.encode())], seed=0)
    (train,), (held_out,) = split.train, split.held_out
    trained = {" ".join(run) for run in phrases(train.text.decode().lower().replace(".", " "))}
    tested = {" ".join(run) for run in phrases(held_out.text.decode().lower().replace(".", " "))}
    assert len(trained & tested) < 0.02 * len(tested)
    assert len(held_out.text) == pytest.approx(len(text) / 10, rel=0.2)
    (dropped,) = split.left_out
    assert dropped.reason.text == "passages that stand in the held-out end of their file as well"
    assert len(train.text) + len(held_out.text) + dropped.bytes == pytest.approx(len(text), abs=5)


def test_a_file_that_repeats_itself_throughout_is_told() -> None:
    told: list[str] = []
    corpus = build_corpus([Document("d", "a", b"the same line again and again\n" * 900)], name="c", say=told.append)
    assert corpus.domains[0].train_bytes > 20_000
    assert "repeats itself: its held-out end stands in its training text as well" in told[0]
    assert corpus.left_out[0].bytes == 0
