"""N-gram models on the embedded corpus: what they reach on held-out text, and how fast, beside KenLM.

    python benchmarks/ngram.py --out benchmarks/results/ngram.json [--lmplz PATH]

Byte level: a document is a sentence; bits per byte of all held-out bytes, the separators between documents and </s>
not scored. Word level: a line is a sentence, words parted as lmplz parts them; bits of all words and of </s>, which
stands for the newline, over all bytes. A word that was never seen costs what <unk> costs and nothing for its
spelling, so that the word level's figure says too little where `unknown_words` is large; it is not comparable to the
byte level's. Training is counting and estimation in a process of its own, whose peak memory is that of the whole
process; queries are timed in that process after one round that is not counted. KenLM's queries come from its Python
package, sentence by sentence. lmplz, if there is one, writes an ARPA file in its time; ours is timed with and
without.
"""

import argparse
import functools
import json
import math
import multiprocessing
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from environment import environment
from moekit.data import Corpus, load_corpus
from moekit.models.ngram import NGram

_KENLM_LINES = 20_000


def seconds(work: Callable[[], object]) -> float:
    """Time a piece of work."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak_bytes() -> int:
    """Measure the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def corpus() -> Corpus:
    """Load the embedded corpus, once."""
    return load_corpus(())


def documents(side: str) -> list[bytes]:
    """List the documents of one side of the corpus."""
    return [text for domain in corpus().domains for text in getattr(domain, side).tobytes().split(b"\0") if text]


def lines(side: str) -> bytes:
    # what lmplz takes: no special words
    """Join the documents of one side, without the special words that lmplz refuses."""
    text = b"\n".join(documents(side))
    for word in (b"<unk>", b"</s>", b"<s>"):
        text = text.replace(word, word.strip(b"<>"))
    return text + b"\n"


def of_bytes(order: int) -> dict[str, Any]:
    """Measure a model of bytes."""
    train, held_out = documents("train"), documents("held_out")
    before = peak_bytes()
    begin = time.perf_counter()
    model = NGram.train_bytes(train, order=order)
    training = time.perf_counter() - begin
    peak = peak_bytes()
    bits = scored = 0.0
    for document in held_out:
        row = np.array([[model.vocabulary.begin, *document]])
        bits -= float(model.log_prob(row).sum()) / math.log(2)
        scored += len(document)
    tokens = sum(map(len, train)) + len(train)
    row = np.frombuffer(b"".join(held_out), dtype=np.uint8)[: 1 << 20].reshape(1, -1)
    model.log_prob(row)
    return {
        "level": "byte",
        "order": order,
        "ngrams": model.ngrams,
        "held_out_bits_per_byte": bits / scored,
        "train_tokens": tokens,
        "train_seconds": training,
        "train_tokens_per_second": tokens / training,
        "peak_bytes_before": before,
        "peak_bytes": peak,
        "query_tokens_per_second": row.size / seconds(lambda: model.log_prob(row)),
    }


def of_words(order: int, lmplz: str | None) -> dict[str, Any]:
    """Measure a model of words, beside KenLM's where it is there."""
    text, held_out = lines("train"), lines("held_out")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.txt").write_bytes(text)
        before = peak_bytes()
        begin = time.perf_counter()
        model = NGram.train_words(folder / "train.txt", order=order)
        training = time.perf_counter() - begin
        peak = peak_bytes()
        writing = seconds(lambda: model.save(folder / "ours.arpa"))
        asked = held_out.decode("utf-8", "surrogateescape").split("\n")[:-1]
        ids, unknown = model.vocabulary.ids, model.vocabulary.unknown
        tokens = len(text.split()) + text.count(b"\n")
        scores = list(model.score_sentences(asked))
        row = np.array([ids.get(word, unknown) for line in asked for word in line.split()])[None]
        model.log_prob(row)
        found = {
            "level": "word",
            "order": order,
            "ngrams": model.ngrams,
            "held_out_bits_per_byte": -sum(float(score.sum()) for score in scores) * math.log2(10) / len(held_out),
            "unknown_words": float((row == unknown).mean()),
            "train_tokens": tokens,
            "train_seconds": training,
            "train_tokens_per_second": tokens / training,
            "arpa_seconds": writing,
            "peak_bytes_before": before,
            "peak_bytes": peak,
            "query_tokens_per_second": row.size / seconds(lambda: model.log_prob(row)),
            "query_tokens_per_second_of_sentences": sum(map(len, scores))
            / seconds(lambda: list(model.score_sentences(asked))),
        }
        return found | _kenlm(folder, asked, scores) | _lmplz(lmplz, folder, order, training + writing)


def _kenlm(folder: Path, asked: list[str], ours: list[Any]) -> dict[str, Any]:
    try:
        import kenlm
    except ImportError:
        return {}
    model = kenlm.Model(str(folder / "ours.arpa"))
    theirs: list[float] = []

    def ask() -> None:
        theirs.extend(score for line in asked[:_KENLM_LINES] for score, _, _ in model.full_scores(line))

    taken = seconds(ask)
    flat = np.concatenate(ours[:_KENLM_LINES])
    same = len(flat) == len(theirs)
    return {
        "kenlm_query_tokens_per_second": len(theirs) / taken,
        "kenlm_largest_difference_log10": float(np.abs(flat - theirs).max()) if same else None,
    }


def _lmplz(lmplz: str | None, folder: Path, order: int, ours: float) -> dict[str, Any]:
    if lmplz is None:
        return {}
    with (folder / "train.txt").open("rb") as text, (folder / "lmplz.arpa").open("wb") as arpa:
        command = [lmplz, "-o", str(order), "-S", "1G", "-T", str(folder), "--discount_fallback"]
        taken = seconds(lambda: subprocess.run(command, stdin=text, stdout=arpa, stderr=subprocess.DEVNULL, check=True))
    return {"lmplz_seconds": taken, "seconds_with_arpa": ours, "ours_over_lmplz": ours / taken}


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--level", choices=["byte", "word"], nargs="+", default=["byte", "word"])
    parser.add_argument("--lmplz", default=shutil.which("lmplz"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    # a process each, so that each has its own peak
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for level in arguments.level:
            for order in arguments.orders:
                work = (order,) if level == "byte" else (order, arguments.lmplz)
                rows.append(pool.apply(of_bytes if level == "byte" else of_words, work))
                print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(environment("numpy", "kenlm") | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
