"""From the rungs' results to what the ladder says: laws, held-out rungs, leverage within it and beyond."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from moekit.comparison.analysis.baseline_comparison import kind_of
from moekit.comparison.ladder.held_out_rungs import FEWEST_RUNGS, INTERVAL, HeldOut, held_out
from moekit.comparison.ladder.ladder_answer import answer, summary_sentences
from moekit.comparison.ladder.ladder_fit import DRAWS, LadderFit, fit_ladder
from moekit.comparison.ladder.ladder_runs import SHARES, LadderRuns, ladder_runs
from moekit.comparison.ladder.ladder_schema import (
    ContestantLadder,
    HeldOutRecord,
    LadderResults,
    LawRecord,
    LeveragePoint,
    LossPoint,
    PredictionRecord,
    PublishedFigure,
    PublishedRecord,
    RungRecord,
)
from moekit.comparison.ladder.leverage import bits_along, log_leverage, seed_log_leverage
from moekit.comparison.ladder.published_laws import PUBLISHED_LAWS, Sparsity, sparsity_of
from moekit.comparison.ladder.target_scale import TargetScale
from moekit.comparison.results_schema import Results
from moekit.core.errors import MoekitError

# How far beyond its end the ladder speaks, and up to which power of ten the published laws are asked besides.
DECADES_BEYOND = 3
PUBLISHED_UP_TO = 22
_STEPS_A_DECADE = 8
_NOISE_DRAWS = 2000


def analyse(
    rungs: Sequence[Results],
    folders: Sequence[str],
    *,
    command: str = "",
    target: TargetScale | None = None,
    draws: int = DRAWS,
) -> LadderResults:
    """Say what a ladder's rungs come to.

    Args:
        rungs: their results, the smallest first.
        folders: of the rungs.
        command: that repeats the ladder.
        target: the scale that is asked about besides.
        draws: of each law.

    Raises:
        MoekitError: where there are fewer than two rungs, or the baseline finished no run at one of them.
    """
    runs = ladder_runs(rungs)
    if len(rungs) < FEWEST_RUNGS:
        raise MoekitError("A ladder has two rungs at least.")
    if not np.isfinite(runs.bits_rcp[:, runs.baseline, -1]).all():
        raise MoekitError(f"No run of the baseline {runs.names[runs.baseline]} was finished at one of the rungs.")
    generator = np.random.default_rng(0)
    fitted = fit_ladder(runs, generator, draws=draws)
    strayed = held_out(fitted, generator, draws=draws) if len(rungs) > FEWEST_RUNGS else None
    sparsities = {one.name: sparsity_of(one) for one in rungs[0].contestants if one.name in runs.names}
    kinds = {one.name: kind_of(one.config) for one in rungs[0].contestants}
    end = float(runs.flops_rc[-1, runs.baseline])
    grid_f = _grid(float(runs.flops_rc[0, runs.baseline]), end)
    contestants = [
        ContestantLadder(
            name=name,
            kind=kinds[name],
            expansion=float(runs.expansion_c[index]),
            losses=_losses(fitted, index, grid_f),
            leverage=_leverage(fitted, strayed, index, grid_f, end, generator) if index != runs.baseline else [],
        )
        for index, name in enumerate(runs.names)
    ]
    asked = [end * 10.0**decade for decade in range(DECADES_BEYOND + 1)]
    asked += [10.0**power for power in range(int(np.ceil(np.log10(end))), PUBLISHED_UP_TO + 1)]
    results = LadderResults(
        moekit=rungs[-1].moekit,
        created=rungs[-1].created,
        command=command,
        corpus=rungs[-1].corpus.name,
        machine=f"{rungs[-1].machine.cpu}, {rungs[-1].machine.cores} cores",
        baseline=runs.names[runs.baseline],
        tokens_per_size=runs.tokens_per_size,
        noise=runs.single_noise,
        noise_assumed=not len(runs.scatter_scp),
        rungs=_rungs(rungs, folders, runs, generator),
        laws=_laws(fitted),
        held_out=_held_out(strayed, runs) if strayed else None,
        contestants=contestants,
        published_laws=[
            PublishedRecord(**{field: getattr(law, field) for field in PublishedRecord.model_fields})
            for law in PUBLISHED_LAWS
        ],
        published=published_figures(sparsities, sorted(set(asked))),
        sentences=[],
    )
    results = results.model_copy(update={"sentences": summary_sentences(results)})
    if target is None:
        return results
    near = end * 10**DECADES_BEYOND >= target.flops >= grid_f[0]
    points = {}
    if near:
        points = {
            name: _leverage(fitted, strayed, index, np.array([target.flops]), end, generator)[0]
            for index, name in enumerate(runs.names)
            if index != runs.baseline
        }
    return results.model_copy(
        update={"at": answer(results, target, points, published_figures(sparsities, [target.flops]))}
    )


def published_figures(sparsities: dict[str, Sparsity | None], flops: Sequence[float]) -> list[PublishedFigure]:
    """Ask every published law about every mixture at each of so many FLOPs."""
    return [
        PublishedFigure(
            law=law.name,
            contestant=name,
            flops=at,
            leverage=law.leverage(mixture, at) if law.speaks_of(mixture) else None,
            within_its_range=law.speaks_of(mixture) and law.flops[0] <= at <= law.flops[1],
        )
        for name, mixture in sparsities.items()
        if mixture is not None
        for at in flops
        for law in PUBLISHED_LAWS
    ]


def _grid(first: float, end: float) -> np.ndarray:
    """Give FLOPs from the first rung's end to three decades beyond the last one's, of which that is one."""
    below = int(np.log10(end / first) * _STEPS_A_DECADE)
    return np.asarray(end * 10 ** (np.arange(-below, DECADES_BEYOND * _STEPS_A_DECADE + 1) / _STEPS_A_DECADE))


def _losses(fitted: LadderFit, index: int, flops_f: np.ndarray) -> list[LossPoint]:
    along = [bits_along(law.law, law.draws_bm, index, flops_f, fitted.runs.tokens_per_size) for law in fitted.kept]
    low, middle, high = np.percentile(np.concatenate(along), (INTERVAL[0], 50, INTERVAL[1]), axis=0)
    return [
        LossPoint(flops=float(f), bits_per_byte=float(m), low=float(a), high=float(b))
        for f, m, a, b in zip(flops_f, middle, low, high, strict=True)
    ]


def _leverage(
    fitted: LadderFit,
    strayed: HeldOut | None,
    index: int,
    flops_f: np.ndarray,
    end: float,
    generator: np.random.Generator,
) -> list[LeveragePoint]:
    by_law = log_leverage(fitted, index, flops_f)
    beyond_f = np.maximum(0, np.log10(flops_f / end))
    beyond_f[beyond_f < 1e-9] = 0
    drift_f = (strayed.drift if strayed else 0.0) * beyond_f
    pooled = np.concatenate(by_law)
    # One stray a draw, along all FLOPs: a law that bends away goes on bending away.
    pooled = pooled + generator.normal(size=(len(pooled), 1)) * drift_f
    low, middle, high = np.exp(np.percentile(pooled, (INTERVAL[0], 50, INTERVAL[1]), axis=0))
    within = np.sqrt(np.mean([np.var(law, axis=0) for law in by_law], axis=0))
    between = np.std([np.median(law, axis=0) for law in by_law], axis=0)
    seeds = np.sqrt(np.mean([np.var(law, axis=0) for law in seed_log_leverage(fitted, index, flops_f)], axis=0))
    return [
        LeveragePoint(
            flops=float(flops_f[at]), decades_beyond=float(beyond_f[at]), leverage=float(middle[at]),
            low=float(low[at]), high=float(high[at]), from_seeds=float(seeds[at]), from_fit=float(within[at]),
            from_law=float(between[at]), from_held_out=float(drift_f[at]),
        )
        for at in range(len(flops_f))
    ]  # fmt: skip


def _rungs(
    rungs: Sequence[Results], folders: Sequence[str], runs: LadderRuns, generator: np.random.Generator
) -> list[RungRecord]:
    ends_rc = np.log(runs.bits_rcp[:, :, -1])
    drawn_drc = np.array([runs.drawn_noise(generator)[:, :, -1] for _ in range(_NOISE_DRAWS)]) + ends_rc
    orders_drc = np.argsort(drawn_drc, axis=2)
    kept_r = (orders_drc == orders_drc[:, -1:]).all(axis=2).mean(axis=0)
    pairs = list(combinations(range(len(runs.names)), 2))
    made = []
    for index, (results, folder) in enumerate(zip(rungs, folders, strict=True)):
        ends_c = ends_rc[index]
        signs = [(np.sign(ends_c[a] - ends_c[b]), np.sign(ends_rc[-1, a] - ends_rc[-1, b])) for a, b in pairs]
        there = [name for name, end in zip(runs.names, ends_c, strict=True) if np.isfinite(end)]
        made.append(
            RungRecord(
                folder=folder,
                size=results.settings.size,
                tokens=results.settings.tokens,
                seeds=len(results.settings.seeds),
                flops=float(runs.flops_rc[index, runs.baseline]),
                baseline_size=float(runs.size_rc[index, runs.baseline]),
                epochs=max(domain.epochs for domain in results.corpus.domains),
                bits_per_byte={name: float(np.exp(ends_c[runs.names.index(name)])) for name in there},
                curves={name: _curve(runs, index, runs.names.index(name)) for name in there},
                order=[name for _, name in sorted((ends_c[runs.names.index(name)], name) for name in there)],
                pairs_in_order=int(sum(here == last for here, last in signs)),
                pairs=len(pairs),
                order_kept=float(kept_r[index]),
            )
        )
    return made


def _curve(runs: LadderRuns, rung: int, one: int) -> list[tuple[float, float]]:
    flops_p, bits_p = runs.flops_rc[rung, one] * SHARES, runs.bits_rcp[rung, one]
    return [(float(at), float(bits)) for at, bits in zip(flops_p, bits_p, strict=True) if np.isfinite(bits)]


def _laws(fitted: LadderFit) -> list[LawRecord]:
    kept = fitted.kept
    records = []
    for one in fitted.laws:
        best = one.best_m[None]
        exponents = [
            dict(zip(fitted.runs.names, map(float, one.law.exponents(best, term)[0]), strict=True))
            for term in range(one.law.terms)
        ]
        records.append(
            LawRecord(
                form=one.law.form.name,
                formula=one.law.form.formula,
                used=one in kept,
                problem=one.problem,
                floor=float(one.law.floor(best)[0, 0]),
                misfit=one.misfit,
                size_exponents=exponents[0],
                token_exponents=exponents[1] if len(exponents) > 1 else {},
            )
        )
    return records


def _held_out(strayed: HeldOut, runs: LadderRuns) -> HeldOutRecord:
    return HeldOutRecord(
        predictions=[
            PredictionRecord(
                contestant=runs.names[one.contestant], predicted=one.predicted, low=one.low, high=one.high, got=one.got,
                inside=one.inside,
            )
            for one in strayed.predictions
        ],
        inside=sum(one.inside for one in strayed.predictions),
        drift_per_decade=strayed.drift,
    )  # fmt: skip
