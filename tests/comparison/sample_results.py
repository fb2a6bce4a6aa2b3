"""A synthetic `Results`: plausible curves and figures from a seeded generator, for tests of verdict and report."""

import math
import random
from collections.abc import Sequence

from moekit.comparison.results_schema import (
    ContestantResults,
    CorpusDomain,
    CorpusRecord,
    CurvePoint,
    ExpertsByDomain,
    LayerRouting,
    Results,
    Run,
    Settings,
)
from moekit.comparison.spec.machine import Machine
from moekit.comparison.spec.model_costs import ContestantConfig
from moekit.config import (
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
    LSTMConfig,
    ModelConfig,
    MoEConfig,
    NGramConfig,
    SoftmaxTopKConfig,
)

DOMAINS = ("code", "cooking", "history", "law", "letters")
TOKENS = 4_000_000
DENSE = DenseConfig(width=512)
MOE = MoEConfig(experts=8, expert_width=256, router=SoftmaxTopKConfig(top_k=2))
FINE = MoEConfig(experts=32, expert_width=64, router=SoftmaxTopKConfig(top_k=8))
SHARED = MoEConfig(
    experts=8, expert_width=256, router=SoftmaxTopKConfig(top_k=1, renormalize=False), branch="shared", branch_width=256
)


def model(layers: Sequence[FeedForwardConfig]) -> ModelConfig:
    """A small byte-level decoder with these feed-forward layers."""
    attention = AttentionConfig(heads=4, kv_heads=2, head_width=32)
    return ModelConfig(vocab_size=256, width=128, context=256, attention=attention, layers=tuple(layers))


def curve(
    final: float, *, speed: float, flops_per_token: float, tokens: int = TOKENS, points: int = 20
) -> list[CurvePoint]:
    """A power law from about 5.5 bits per byte at the first point down to `final` at `tokens`; speed: tokens/s."""
    made = []
    for index in range(1, points + 1):
        seen = round(tokens * (index / points) ** 2)
        level = final + (5.5 - final) * ((seen / tokens) ** -0.35 - 1) / (points**0.7 - 1)
        made.append(
            CurvePoint(
                step=seen // 4096,
                tokens=seen,
                flops=seen * flops_per_token,
                seconds=seen / speed,
                bits_per_byte=level,
                train_loss=level - 0.03,
            )
        )
    return made


def run(
    seed: int, final: float, *, speed: float = 50_000, memory: int = 400_000_000, flops: float = 6e6, experts: int = 0,
    layers: Sequence[int] = (), decode_ms: float = 1.0, spikes: int = 0, domains: Sequence[str] = DOMAINS
) -> Run:  # fmt: skip
    """A finished run that ends at `final` bits per byte."""
    chance = random.Random(f"{seed} {final} {experts}")
    return Run(
        seed=seed,
        status="done",
        tokens=TOKENS,
        seconds=TOKENS / speed,
        train_tokens_per_second=speed,
        peak_memory_bytes=memory + seed * 1_000_000,
        bits_per_byte=final,
        bits_per_byte_by_domain={
            name: final + 0.12 * (i - 2) + chance.gauss(0, 0.01) for i, name in enumerate(domains)
        },
        loss_spikes=spikes,
        decode_ms=[decode_ms * math.exp(chance.gauss(0, 0.06)) for _ in range(200)],
        routing=[
            LayerRouting(
                layer=layer,
                load_max_over_mean=1.1 + 0.1 * layer + chance.random() * 0.3,
                load_entropy=0.97 - 0.01 * layer,
                dead_experts=0,
                dropped_share=0.0,
                mean_top_score=0.4 + 0.05 * chance.random(),
                logit_norm=1.5,
            )
            for layer in layers
        ],
        experts_by_domain=[_experts(chance, layer, experts, domains) for layer in layers],
        curve=curve(final, speed=speed, flops_per_token=flops),
    )


def _experts(chance: random.Random, layer: int, experts: int, domains: Sequence[str]) -> ExpertsByDomain:
    rows = []
    for _ in domains:
        weights = [chance.gammavariate(3 + 2 / (1 + layer), 1) for _ in range(experts)]
        rows.append([weight / sum(weights) for weight in weights])
    found = 0.05 + 0.04 * layer
    return ExpertsByDomain(
        layer=layer, domains=list(domains), share=rows, mutual_information_bits=found,
        shuffled_mean_bits=0.008, shuffled_p95_bits=0.012,
    )  # fmt: skip


def failed_run(seed: int, failure: str = "the loss is no longer a number (step 812)") -> Run:
    """A run that stopped on the way."""
    return Run(seed=seed, status="failed", failure=failure, tokens=812 * 4096, loss_spikes=2)


def contestant(
    name: str, config: ContestantConfig, runs: Sequence[Run], *, total: int | None, active: int, flops: float = 6e6
) -> ContestantResults:
    """Its means over the finished runs; every figure None where no run finished."""
    done = [one for one in runs if one.status == "done"]
    times = sorted(ms for one in done for ms in one.decode_ms)

    def mean(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return sum(there) / len(there) if there else None

    memory = mean([one.peak_memory_bytes for one in done])
    names = done[0].bits_per_byte_by_domain if done else {}
    return ContestantResults(
        name=name,
        description=f"what {name} is, in one line",
        config=config,
        params_total=total,
        params_active=active,
        params_by_part={} if total is None else {"embedding": 32_768, "experts": total - 32_768},
        flops_per_token=flops,
        inference_flops_per_token=flops / 3,
        weight_bytes=None if total is None else 2 * total,
        train_tokens_per_second=mean([one.train_tokens_per_second for one in done]),
        seconds=mean([one.seconds for one in done]),
        peak_memory_bytes=None if memory is None else round(memory),
        bits_per_byte=mean([one.bits_per_byte for one in done]),
        bits_per_byte_by_domain={
            domain: sum(one.bits_per_byte_by_domain[domain] for one in done) / len(done) for domain in names
        },
        decode_ms_per_token_median=times[len(times) // 2] if times else None,
        decode_ms_per_token_p95=times[int(0.95 * len(times))] if times else None,
        curve=[
            points[0].model_copy(update={"bits_per_byte": sum(point.bits_per_byte for point in points) / len(points)})
            for points in zip(*(one.curve for one in done), strict=True)
        ],
        runs=list(runs),
    )


def results(
    contestants: Sequence[ContestantResults], *, seeds: Sequence[int], baseline: str = "dense",
    domains: Sequence[str] = DOMAINS, command: str = "moekit compare --size small --seeds 3",
) -> Results:  # fmt: skip
    """A comparison of these contestants."""
    return Results(
        moekit="0.1.0",
        created="2026-01-02T03:04:05Z",
        command=command,
        wall_seconds=1834.0,
        corpus=CorpusRecord(
            name="sample",
            sha256="3f" * 32,
            domains=[
                CorpusDomain(
                    name=name, train_bytes=1_900_000 + 90_000 * i, held_out_bytes=100_000, train_files=40 + i,
                    held_out_files=4, unigram_bits_per_byte=4.5 + 0.05 * i, epochs=0.4 + 0.1 * i,
                )
                for i, name in enumerate(domains)
            ],
            unigram_bits_per_byte=4.6,
        ),
        machine=Machine(
            cpu="a processor", cores=8, memory_bytes=32_000_000_000, system="Linux", python="3.11.7", torch="2.9.0",
            precision="float32",
        ),
        settings=Settings(
            size="small", budget_seconds=1800.0, tokens=TOKENS, seeds=list(seeds), batch_tokens=4096, context=256,
            learning_rate=0.002, learning_rate_rule="the best of three on the baseline, then used for all",
            schedule="warm-up over 200 steps, then inverse square root of the step", optimizer="AdamW",
            measured_weights="the average over the latest 10 %",
            held_out_tokens=400_000,
        ),
        baseline=baseline,
        contestants=list(contestants),
    )  # fmt: skip


def sample(seeds: Sequence[int] = (0, 1, 2)) -> Results:
    """Five contestants: `moe` is better per FLOP, slower per second; `moe-fine` fails on the last of several seeds."""
    noise = random.Random(7)

    def finals(level: float) -> list[float]:
        return [level + 0.01 * seed + noise.gauss(0, 0.004) for seed in seeds]

    four = range(4)
    fine = [
        run(s, f, speed=21_000, memory=900_000_000, experts=32, layers=four, decode_ms=2.2, spikes=1)
        for s, f in zip(seeds, finals(1.88), strict=True)
    ]
    if len(seeds) > 1:
        fine[-1] = failed_run(seeds[-1])
    large = {"speed": 14_000, "memory": 1_050_000_000, "flops": 17e6, "decode_ms": 2.6}
    return results(
        [
            contestant(
                "dense", model([DENSE] * 4), [run(s, f) for s, f in zip(seeds, finals(1.92), strict=True)],
                total=1_050_000, active=1_050_000,
            ),
            contestant(
                "moe", model([MOE] * 4),
                [
                    run(s, f, speed=28_000, memory=1_100_000_000, experts=8, layers=four, decode_ms=1.6)
                    for s, f in zip(seeds, finals(1.86), strict=True)
                ],
                total=3_410_000, active=1_060_000,
            ),
            contestant("moe-fine", model([FINE] * 4), fine, total=3_420_000, active=1_070_000),
            contestant(
                "hybrid", model([DENSE, SHARED] * 2),
                [
                    run(s, f, speed=36_000, memory=800_000_000, experts=8, layers=(1, 3), decode_ms=1.3)
                    for s, f in zip(seeds, finals(1.91), strict=True)
                ],
                total=2_240_000, active=1_055_000,
            ),
            contestant(
                "dense-large", model([DenseConfig(width=2048)] * 4),
                [run(s, f, **large) for s, f in zip(seeds, finals(1.80), strict=True)],  # type: ignore[arg-type]
                total=3_410_000, active=3_410_000, flops=17e6,
            ),
        ],
        seeds=seeds,
    )  # fmt: skip


LSTM = LSTMConfig(vocab_size=256, embedding_width=328, widths=(328,))
NGRAM = NGramConfig(order=7)


def nine(seeds: Sequence[int] = (0, 1, 2)) -> Results:
    """Everyone with a mixture of many experts: as many contestants as take part by default."""
    made = everyone(seeds)
    runs = [
        run(s, 1.83 + 0.004 * s, speed=24_000, memory=1_400_000_000, experts=32, layers=range(4), decode_ms=2.4)
        for s in seeds
    ]
    many = contestant("moe-many", model([FINE] * 4), runs, total=7_900_000, active=1_080_000)
    return made.model_copy(update={"contestants": [*made.contestants[:3], many, *made.contestants[3:]]})


def everyone(seeds: Sequence[int] = (0, 1, 2)) -> Results:
    """The sample with `gpt3`, `lstm` and `ngram`, the last of which is the best of all."""
    made = sample(seeds)
    counted = [run(s, 1.6, speed=1_000_000, memory=90_000_000, flops=0, decode_ms=0.6) for s in seeds]
    more = [
        contestant(
            "gpt3", model([DENSE] * 4), [run(s, 1.93, speed=45_000) for s in seeds], total=1_060_000, active=1_060_000
        ),
        contestant("lstm", LSTM, [run(s, 2.2, speed=20_000) for s in seeds], total=948_000, active=948_000),
        contestant("ngram", NGRAM, counted, total=434_000, active=7, flops=0),
    ]
    return made.model_copy(update={"contestants": [*made.contestants, *more]})
