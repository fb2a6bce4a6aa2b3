"""Do several small models together beat one, at equal cost? Claim 13, from training to measurement, without a network.

One dense byte-level decoder is trained on the embedded corpus and fine-tuned on each of its four domains: the members.
Held-out documents of all domains are cut in two. A strategy sees the first half and chooses who goes on (`route`,
`rank`), or all go on together (`ensemble`); what is measured is bits per byte of the second half. Beside them: a dense
model of the members' size, trained on as many tokens as all of them together; one whose forward pass costs as much as
all members', trained on as many tokens; and the members merged into one mixture of experts (`fitted` gates).

    cd benchmarks && python agents.py --out results/agents.json
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from environment import environment
from merge_quality import merge_of, prompts_of, train
from moekit.agents import AgentsConfig, AnswerFailed, Engine
from moekit.agents.config.agents_config import LocalMemberConfig
from moekit.agents.config.strategy_configs import EnsembleConfig
from moekit.agents.evaluate.intervals import estimate
from moekit.agents.members.load_local import ensemble_member, load_local_members
from moekit.agents.members.local import LocalMember
from moekit.config import BYTE_VOCAB_SIZE, AttentionConfig, DenseConfig, ModelConfig
from moekit.convert.merging.router_training import loaded
from moekit.core.messages import ChatOptions, Message
from moekit.counting import count_parameters, inference_flops_per_token, training_flops_per_token
from moekit.data import Corpus, load_corpus
from moekit.models import Decoder, load
from moekit.models.folder import read_config
from moekit.training import TrainingConfig

CONTEXT, HEAD_WIDTH = 128, 32
SAME, WIDE, MERGED = "dense, same size", "dense, cost of all members", "merged"
ROUTES: dict[str, dict[str, Any]] = {
    "route by examples": {"by": "examples"},
    "route by examples, vectors of the base": {"by": "examples", "embedding": "base"},
    "route by classifier": {"by": "classifier"},
    "route by classifier, vectors of the base": {"by": "classifier", "embedding": "base"},
    "route by likelihood": {"by": "likelihood"},
}
RANK, ENSEMBLE = "rank by likelihood, the base judging", "ensemble"
ORACLE = "route by the truth"


@dataclass(frozen=True)
class Halves:
    """A held-out document in two halves: a strategy sees the first, the second is measured."""

    domain: str
    question: str
    answer: str


def dense(width: int, hidden: int, depth: int) -> ModelConfig:
    """Describe a decoder of Llama's kind over bytes, with half as many heads for keys as for queries."""
    heads = width // HEAD_WIDTH
    return ModelConfig(
        vocab_size=BYTE_VOCAB_SIZE,
        width=width,
        context=CONTEXT,
        attention=AttentionConfig(heads=heads, kv_heads=heads // 2, head_width=HEAD_WIDTH),
        layers=(DenseConfig(width=hidden),) * depth,
        init_std=math.sqrt(2 / (5 * width)),  # as the contestants of `moekit compare`
    )


def as_costly(flops: int, width: int, depth: int) -> ModelConfig:
    """Find the dense model of that width whose forward pass is nearest to so many FLOPs a token."""
    widths = range(8, 16 * width, 8)
    return min(
        (dense(width, hidden, depth) for hidden in widths),
        key=lambda config: abs(inference_flops_per_token(config, CONTEXT) - flops),
    )


def train_all(corpus: Corpus, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """Train and save every model, and give the steps that went into each, those of the base included."""
    names = [domain.name for domain in corpus.domains]
    together = options.steps + len(names) * options.tune_steps
    base = new_model(dense(options.width, 3 * options.width, options.depth))
    spend(base, corpus, options, options.steps, folder / "base")
    for domain in corpus.domains:
        model = Decoder(base.config)
        model.load_state_dict(base.state_dict())
        only = Corpus(corpus.name, corpus.sha256, (domain,))
        spend(model, only, options, options.tune_steps, folder / domain.name, tuning=True)
    spend(new_model(base.config), corpus, options, together, folder / SAME)
    flops = len(names) * inference_flops_per_token(base.config, CONTEXT)
    wide = as_costly(flops, 2 * options.width, options.depth)
    spend(new_model(wide), corpus, options, together, folder / WIDE)
    prompts = prompts_of(corpus, options.examples, options.example_bytes)
    if not (folder / MERGED).is_dir():
        loaded(merge_of(folder, names, prompts, "fitted", 2, "average")).save(folder / MERGED)
    steps = dict.fromkeys(names, options.steps + options.tune_steps)
    return {"base": options.steps, **steps, SAME: together, WIDE: together, MERGED: together}


def new_model(config: ModelConfig) -> Decoder:
    """Build a model with the weights of seed 0."""
    torch.manual_seed(0)
    return Decoder(config)


def spend(
    model: Decoder, corpus: Corpus, options: argparse.Namespace, steps: int, folder: Path, *, tuning: bool = False
) -> None:
    """Train for so many steps and save, unless it is there; tuning goes on in the data where the base stopped."""
    if folder.is_dir():
        kept = load(folder)
        assert isinstance(kept, Decoder)
        model.load_state_dict(kept.state_dict())
        return
    begin = time.monotonic()
    training = TrainingConfig(
        steps=steps,
        sequences=options.sequences,
        micro_sequences=options.sequences,
        context=CONTEXT,
        learning_rate=options.tune_rate if tuning else options.rate,
        warmup_steps=20,
    )
    train(model, corpus, training, first_step=options.steps if tuning else 0)
    model.save(folder)
    print(f"{folder.name}: {steps} steps, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def documents(corpus: Corpus, count: int) -> list[Halves]:
    """Cut `count` documents of each domain from its held-out text, evenly spread, as long as the context."""
    found = []
    for domain in corpus.domains:
        text = bytes(domain.held_out)
        for index in range(count):
            place = len(text) * index // count
            piece = text[place : place + CONTEXT - 1].replace(b"\0", b"\n").decode("utf-8", errors="ignore")
            half = len(piece) // 2
            found.append(Halves(domain.name, piece[:half], piece[half:]))
    return found


def configuration(folder: Path, names: Sequence[str], corpus: Corpus, options: argparse.Namespace) -> AgentsConfig:
    """Describe the members and the strategies, as a user would write them in YAML."""
    examples = prompts_of(corpus, options.examples, options.example_bytes)
    shown = dict(zip(names, examples, strict=True))
    strategies: dict[str, dict[str, Any]] = {
        name: {"kind": "route", "members": list(names), **route}
        | ({} if route["by"] == "likelihood" else {"examples": shown})
        for name, route in ROUTES.items()
    }
    strategies[RANK] = {"kind": "rank", "members": list(names), "by": "likelihood", "judge": "base"}
    members = {name: {"path": str(folder / name), "max_tokens": options.answer_tokens} for name in [*names, "base"]}
    return AgentsConfig.model_validate({"members": members, "strategies": strategies})


async def chosen(engine: Engine, strategy: str, question: str) -> str | None:
    """Find the member that a strategy lets answer; None where none of a ranking's members wrote anything.

    A route's is whom it asks first, and one token is enough to see that.
    """
    options = ChatOptions(temperature=0.0, max_tokens=None if strategy == RANK else 1)
    text = None
    try:
        answer = await engine.answer([Message(role="user", content=question)], strategy, options)
        trace, text = answer.trace, answer.text
    except AnswerFailed as error:
        trace = error.trace
    if strategy == RANK:
        said = {call.name: call.text for call in trace.calls if call.stage == "candidates"}
        # Of equal answers the one of the member that stands first was taken; the trace has them as they ended.
        names = engine.config.strategies[strategy].names()
        return None if text is None else next(name for name in names if said.get(name) == text)
    return next(call.name for call in trace.calls if call.stage == "answer")


async def choices(config: AgentsConfig, held_out: Sequence[Halves]) -> dict[str, list[str | None]]:
    """Find who was chosen for each document, by strategy."""
    found = {}
    async with Engine(config) as engine:
        for strategy in config.strategies:
            found[strategy] = [await chosen(engine, strategy, each.question) for each in held_out]
            print(f"{strategy}: chosen", file=sys.stderr, flush=True)
    return found


async def bits_of(member: LocalMember, held_out: Sequence[Halves]) -> list[float]:
    """Score each second half after its first, in bits per byte."""
    found = []
    for each in held_out:
        nats, _ = await member.score([Message(role="user", content=each.question)], each.answer)
        found.append(-nats / math.log(2) / len(each.answer.encode()))
    print(f"{member.name}: scored", file=sys.stderr, flush=True)
    return found


def cost_in_members(strategy: str, members: int, held_out: Sequence[Halves], answer_tokens: int) -> float:
    """Compute what a document costs, in forward passes of one member over it: that pass, and what choosing takes.

    N-gram features cost nothing here: they are no matrix products.
    """
    question = float(np.mean([1 + len(each.question.encode()) for each in held_out]))
    whole = float(np.mean([1 + len((each.question + each.answer).encode()) for each in held_out]))
    if strategy == ENSEMBLE:
        return members
    choosing = 0.0
    if strategy == RANK:
        choosing = 2 * members * (question + answer_tokens)  # each member writes an answer, and the judge reads it
    elif ROUTES[strategy]["by"] == "likelihood":
        choosing = members * question
    elif "embedding" in ROUTES[strategy]:
        choosing = question
    return 1 + choosing / whole


def row(
    bits: Sequence[float], held_out: Sequence[Halves], references: Mapping[str, Sequence[float]], **further: Any
) -> dict[str, Any]:
    """Estimate bits per byte with 95 % intervals over documents, and the paired difference from each reference."""
    domains = sorted({each.domain for each in held_out})
    by_domain = {
        name: float(np.mean([bit for bit, each in zip(bits, held_out, strict=True) if each.domain == name]))
        for name in domains
    }
    against = {
        name: estimate(np.subtract(bits, reference).tolist()).model_dump() for name, reference in references.items()
    }
    return {"bits_per_byte": estimate(bits).model_dump(), "by_domain": by_domain, "against": against, **further}


async def measure(folder: Path, steps: Mapping[str, int], corpus: Corpus, options: argparse.Namespace) -> Any:
    """Measure each model and each strategy, a row each."""
    names = [domain.name for domain in corpus.domains]
    held_out = documents(corpus, options.documents)
    members = load_local_members({name: LocalMemberConfig(path=str(folder / name), max_tokens=8) for name in steps})
    members[ENSEMBLE] = ensemble_member(ENSEMBLE, EnsembleConfig(members=tuple(names)), members)
    bits = {name: await bits_of(member, held_out) for name, member in members.items()}
    best = min(names, key=lambda name: float(np.mean(bits[name])))
    picked = await choices(configuration(folder, names, corpus, options), held_out)
    for strategy, who in picked.items():
        # Who cannot tell takes the first.
        bits[strategy] = [bits[name or names[0]][place] for place, name in enumerate(who)]
    bits[ORACLE] = [bits[each.domain][place] for place, each in enumerate(held_out)]
    references = {f"best member ({best})": bits[best], SAME: bits[SAME], WIDE: bits[WIDE], MERGED: bits[MERGED]}
    configs = {name: read_config(folder / name)[1] for name in steps}
    rows = {}
    for name, of_documents in bits.items():
        own, trained_as = (name, name) if name in steps else ("base", SAME)
        times, further = 1.0, dict[str, Any]()
        if name in picked or name == ENSEMBLE:
            times = cost_in_members(name, len(names), held_out, options.answer_tokens)
        if name in picked:
            right = [who == each.domain for who, each in zip(picked[name], held_out, strict=True)]
            further = {"right": float(np.mean(right)), "undecided": picked[name].count(None)}
        tokens = steps[trained_as] * options.sequences * CONTEXT
        further |= {
            "flops_per_token": times * inference_flops_per_token(configs[own], CONTEXT),
            "parameters": count_parameters(configs[own]).total * (1 if name in steps else len(names)),
            "training_tokens": tokens,
            # The merge was trained as its members were.
            "training_flops": tokens * training_flops_per_token(configs["base" if name == MERGED else own], CONTEXT),
        }
        rows[name] = row(of_documents, held_out, references, **further)
    return best, rows


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="of the members; their networks are three times as wide")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=16, help=f"of {CONTEXT} bytes in a step")
    parser.add_argument("--steps", type=int, default=300, help="of the base model")
    parser.add_argument("--tune-steps", type=int, default=150, help="of each member")
    parser.add_argument("--rate", type=float, default=2e-3, help="of learning, of models that begin at random")
    parser.add_argument("--tune-rate", type=float, default=2e-3, help="of learning, of members")
    parser.add_argument("--documents", type=int, default=60, help="of each domain")
    parser.add_argument("--examples", type=int, default=16, help="of each domain, for routes and the merge's gates")
    parser.add_argument("--example-bytes", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=24, help="of the answers that are ranked")
    parser.add_argument("--models", type=Path, help="keep the models here; those that are here are not trained again")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    options = parser.parse_args()
    where, corpus, begin = environment("numpy"), load_corpus(()), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.models or Path(temporary)
        before = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        steps = train_all(corpus, folder, options)
        trained = time.monotonic() - begin
        best, rows = asyncio.run(measure(folder, steps, corpus, options))
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "models")}
    changed = [
        f"--{name.replace('_', '-')} {value}" for name, value in settings.items() if value != parser.get_default(name)
    ]
    record = {
        "environment": where,
        "command": " ".join(["python agents.py", *changed]),
        "settings": settings,
        "trained_before": before,
        "seconds": {"training": trained, "measuring": time.monotonic() - begin - trained},
        "best_member": best,
        "results": rows,
    }
    text = json.dumps(record, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
