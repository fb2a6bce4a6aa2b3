"""The merges of a byte-pair tokenizer in a GGUF file: as they are listed, or as they follow from scores."""

from collections.abc import Collection, Sequence

from moekit.checkpoint.gguf import Metadata

KEY = "tokenizer.ggml"


def listed_merges(metadata: Metadata) -> list[tuple[str, str]] | None:
    """Read the pairs that are merged, in their order; None where the file lists none.

    Raises:
        MoekitError: where they are no pairs.
    """
    merges = metadata.strings(f"{KEY}.merges")
    if merges is None:
        return None
    # A space is no part of a token: it is written as another letter.
    pairs = [tuple(merge.split(" ")) for merge in texts(merges.raw(), metadata, f"{KEY}.merges")]
    if any(len(pair) != 2 for pair in pairs):
        raise metadata.problem(f"{KEY}.merges", "must be pairs of tokens with a space between")
    return pairs  # type: ignore[return-value]


def merges_of_scores(
    scores: Sequence[float], words: Sequence[str], kinds: Sequence[int], joined: Collection[int]
) -> list[tuple[str, str]]:
    """Derive the merges from the scores of a SentencePiece model.

    SentencePiece joins, of all neighbours that are a token together, those whose token has the highest score: so every
    way to cut a token into two tokens is a merge, in the order of the scores. Of one token's they stand in the order
    that transformers gives them (`generate_merges`): the longest first piece first.

    Args:
        scores: of the tokens, by id.
        words: their texts, by id.
        kinds: their kinds, by id.
        joined: the kinds of tokens that are joined and joined to.
    """
    found = {word: score for word, score, kind in zip(words, scores, kinds, strict=False) if kind in joined}
    cuts = [
        (score, word[:cut], word[cut:])
        for word, score in found.items()
        for cut in range(1, len(word))
        if word[:cut] in found and word[cut:] in found
    ]
    cuts.sort(key=lambda cut: (cut[0], len(cut[1]), len(cut[2])), reverse=True)
    return [(left, right) for _, left, right in cuts]


def scores_of_merges(merges: Sequence[tuple[str, str]], words: Sequence[str]) -> list[float]:
    """Give each token the rank of the first merge that makes it, negated; those that none makes come last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(word, len(merges))) for word in words]


def texts(raw: Sequence[bytes], metadata: Metadata, key: str) -> list[str]:
    """Decode the texts of an array; MoekitError where one is not UTF-8."""
    try:
        # All at once takes a third of the time, unless one of them holds what stands between them.
        found = str(b"\0".join(raw), "utf-8").split("\0")
        return found if len(found) == len(raw) else [str(word, "utf-8") for word in raw]
    except UnicodeDecodeError as error:
        raise metadata.problem(key, "holds a text that is not UTF-8") from error
