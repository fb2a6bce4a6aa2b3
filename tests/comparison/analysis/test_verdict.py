"""The verdict against figures worked out by hand, and its words where runs fail, disagree or are too few."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison.sample_results import (
    DENSE,
    DOMAINS,
    LSTM,
    MOE,
    NGRAM,
    SHARED,
    contestant,
    everyone,
    failed_run,
    model,
    results,
    run,
    sample,
)

from moekit.comparison.analysis.baseline_comparison import find, hold_against, kind_of, order_by_seed
from moekit.comparison.analysis.learning_curves import first_reach, level_at, reach_ratios
from moekit.comparison.analysis.summary_table import SUMMARY_HEADINGS, summary_table
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import CurvePoint, LeftOutText, Results, Run


def points(*pairs: tuple[int, float], speed: float = 10.0, flops: float = 100.0) -> list[CurvePoint]:
    """A curve through (tokens, bits per byte)."""
    return [
        CurvePoint(
            step=i, tokens=tokens, flops=tokens * flops, seconds=tokens / speed, bits_per_byte=level, train_loss=level
        )
        for i, (tokens, level) in enumerate(pairs)
    ]


def two(dense: list[float], moe: list[float], *, moe_speed: float = 50_000, baseline: str = "dense") -> Results:
    """`dense` and `moe` with these final bits per byte, one a seed."""
    return results(
        [
            contestant("dense", model([DENSE]), [run(s, f) for s, f in enumerate(dense)], total=100, active=100),
            contestant(
                "moe", model([MOE]), [run(s, f, speed=moe_speed, memory=800_000_000) for s, f in enumerate(moe)],
                total=300, active=100,
            ),
        ],
        seeds=range(max(len(dense), len(moe))), baseline=baseline,
    )  # fmt: skip


def test_t_interval_by_hand() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate is not None
    half = 4.302653 / math.sqrt(3)
    assert (estimate.mean, estimate.spread, estimate.seeds) == (2.0, "interval", 3)
    assert (estimate.low, estimate.high) == pytest.approx((2 - half, 2 + half))


# The published table of Student's t, two-sided 95 %, by degrees of freedom.
@pytest.mark.parametrize(("freedom", "expected"), [(2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (120, 1.980)])
def test_intervals_are_students(freedom: int, expected: float) -> None:
    estimate = Estimate.of([-1.0, *[0.0] * (freedom - 1), 1.0])
    assert estimate is not None
    error = math.sqrt(2 / freedom) / math.sqrt(freedom + 1)
    assert (estimate.high - estimate.mean) / error == pytest.approx(expected, abs=6e-4)


def test_few_seeds_claim_little() -> None:
    """Two values are no interval of 95 %: Student's with one degree of freedom is 12.7 standard errors."""
    one, both = Estimate.of([2.0]), Estimate.of([3.0, 1.0])
    assert one is not None
    assert both is not None
    assert one.spread == "none"
    assert both.spread == "interval"
    assert (both.low, both.mean, both.high) == pytest.approx((2 - 12.706, 2.0, 2 + 12.706), abs=1e-3)
    assert Estimate.of([]) is None


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=6))
def test_a_ratio_and_its_inverse_agree(values: list[float]) -> None:
    there, back = Estimate.of_ratios(values), Estimate.of_ratios([1 / value for value in values])
    assert there is not None
    assert back is not None
    assert there.low > 0
    assert (1 / back.high, 1 / back.mean, 1 / back.low) == pytest.approx((there.low, there.mean, there.high))


def test_first_reach_is_linear_in_log_tokens() -> None:
    curve = points((100, 4.0), (400, 2.0))
    reached = first_reach(curve, 3.0)
    assert reached == pytest.approx({"tokens": 200.0, "flops": 20_000.0, "seconds": 20.0})
    assert first_reach(curve, 1.9) is None
    assert first_reach(curve, 5.0) == {"tokens": 100.0, "flops": 10_000.0, "seconds": 10.0}
    assert first_reach([], 1.0) is None


def test_level_at_a_share_undoes_first_reach() -> None:
    curve = points((100, 4.0), (200, 3.5), (400, 2.0))
    assert level_at(curve, 1.0) == 2.0
    assert level_at(curve, 0.5) == pytest.approx(3.5)
    level = level_at(curve, 0.7)
    assert level is not None
    reached = first_reach(curve, level)
    assert reached is not None
    assert reached["tokens"] == pytest.approx(280)
    assert level_at(curve, 0.1) is None


@given(st.lists(st.floats(1.0, 5.0), min_size=2, max_size=12), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_a_curve_against_itself_is_one(levels: list[float], share: float) -> None:
    """Wobbling or not: the rule of the first crossing favours nobody."""
    curve = points(*((10 * 2**i, level) for i, level in enumerate(levels)))
    ratios = reach_ratios(curve, curve, share)
    assert ratios is None or list(ratios.ratios.values()) == pytest.approx([1.0, 1.0, 1.0])
    assert share < 1 or ratios is not None


def test_reach_ratios_by_hand() -> None:
    baseline = points((100, 4.0), (400, 3.0))
    faster = points((100, 3.5), (400, 2.5), speed=5.0, flops=100.0)
    found = reach_ratios(faster, baseline)
    assert found is not None
    assert found.reached
    assert found.ratios == pytest.approx({"tokens": 0.5, "flops": 0.5, "seconds": 1.0})
    missed = reach_ratios(baseline, faster)  # all that it spent: 400 tokens in 40 seconds, over 400 in 80
    assert missed is not None
    assert not missed.reached
    assert missed.ratios == pytest.approx({"tokens": 1.0, "flops": 1.0, "seconds": 0.5})


def test_kinds() -> None:
    assert [kind_of(model(layers)) for layers in ([DENSE], [MOE], [DENSE, SHARED])] == ["dense", "moe", "hybrid"]
    assert [kind_of(LSTM), kind_of(NGRAM)] == ["lstm", "ngram"]


def test_comparison_is_paired_by_seed() -> None:
    """A difference that is the same in every seed is certain, however much the seeds differ."""
    comparison = two([2.0, 2.5, 3.0], [1.9, 2.4, 2.9])
    moe, dense = find(comparison, "moe"), find(comparison, "dense")
    assert moe is not None
    assert dense is not None
    against = hold_against(moe, dense)
    assert against.difference is not None
    assert (against.difference.mean, against.difference.low) == pytest.approx((-0.1, -0.1))
    assert against.memory is not None
    assert against.memory.mean == pytest.approx(2.0, rel=0.01)
    assert (against.final.reached, against.final.seeds) == (3, 3)
    assert [reach.share for reach in against.reach] == [0.25, 0.5, 0.75, 1.0]


def test_better_everywhere() -> None:
    verdict = judge(two([2.0, 2.01, 2.02], [1.9, 1.912, 1.921]))
    assert verdict.answer == "Mixture of experts"
    assert "95 % interval" in verdict.headline
    assert "3 seeds" in verdict.headline
    assert "the training memory" in verdict.headline
    assert verdict.leader == "moe"


def test_better_by_flops_but_slower() -> None:
    verdict = judge(two([2.0, 2.01, 2.02], [1.9, 1.912, 1.921], moe_speed=10_000))
    assert verdict.answer == "Mixture of experts for each FLOP, dense for each second on this machine"
    assert "times the seconds" in verdict.headline


def test_worse() -> None:
    verdict = judge(two([1.9, 1.91, 1.92], [2.0, 2.01, 2.021]))
    assert verdict.answer == "Dense"
    assert "above `dense`" in verdict.headline
    sentence = verdict.sentences["moe"]
    assert "`moe` did not reach `dense`'s final level in any of 3 seeds" in sentence
    assert "`dense` reached the final level of `moe`" in sentence
    assert verdict.against["moe"].inverse.reached == 3


def test_within_the_noise() -> None:
    verdict = judge(two([2.0, 2.05, 1.95], [1.99, 2.03, 1.99]))
    assert verdict.answer == "No difference was shown"
    assert "within the noise" in verdict.sentences["moe"]


def test_partly_reached() -> None:
    verdict = judge(two([2.0, 2.0, 2.0], [1.99, 2.03, 1.98]))
    assert "in 2 of 3 seeds alone" in verdict.sentences["moe"]
    assert summary_table(two([2.0, 2.0, 2.0], [1.99, 2.03, 1.98]))[1].reached_flops.endswith("2 of 3 seeds")


def test_one_seed_has_no_uncertainty() -> None:
    verdict = judge(two([2.0], [1.9]))
    assert verdict.answer == "No answer from one seed"
    assert verdict.record.answer == "undecided"
    assert "0.100 bits per byte below" in verdict.headline
    assert "interval" not in verdict.headline + verdict.sentences["moe"]
    assert any("no uncertainty figure" in check.text for check in verdict.checks)
    assert "±" not in summary_table(two([2.0], [1.9]))[0].bits_per_byte


def test_two_seeds() -> None:
    assert judge(two([2.0, 2.1], [1.9, 2.0])).answer == "Mixture of experts, as far as two seeds can tell"
    assert judge(two([2.0, 2.1], [1.9, 2.2])).answer == "No difference was shown"


def test_a_mixture_may_be_the_baseline() -> None:
    verdict = judge(two([2.0, 2.01, 2.02], [1.9, 1.912, 1.921], baseline="moe"))
    assert verdict.answer == "Mixture of experts"
    assert verdict.leader == "dense"


def test_order_of_contestants() -> None:
    same, other = two([2.0, 2.1], [1.9, 2.0]), two([2.0, 2.1], [1.9, 2.2])
    assert set(order_by_seed(same).values()) == {("moe", "dense")}
    assert any(check.good and "order" in check.text for check in judge(same).checks)
    assert any(not check.good and "changes with the seed" in check.text for check in judge(other).checks)


def test_unigram_model_is_the_bar() -> None:
    assert any(check.good and "4.600" in check.text for check in judge(sample()).checks)
    verdict = judge(two([4.7, 4.8], [4.5, 4.55]))
    assert any(not check.good and check.text.startswith("`dense` did not get below") for check in verdict.checks)


def test_failures_and_spikes_are_told() -> None:
    told = [check.text for check in judge(sample()).checks if not check.good]
    assert "`moe-fine`: 1 of 3 runs failed (seed 2: the loss is no longer a number (step 812))." in told
    assert "`moe-fine`: the loss spiked 4 times in 3 runs." in told


def test_specialisation_against_shuffled_domains() -> None:
    routers = judge(sample()).routers
    assert list(routers) == ["moe", "moe-fine", "hybrid"]
    assert "0.110 bits about the chosen expert, against 0.008" in routers["moe"]
    assert "12 of 12" in routers["moe"]


def test_summary_rows() -> None:
    rows = {row.name: row for row in summary_table(sample())}
    assert rows["dense"].reached_flops == "1 (baseline)"
    assert rows["moe"].params_total == "3.41 M"
    assert "±" in rows["moe"].bits_per_byte
    assert SUMMARY_HEADINGS.name == "Contestant"


CAVEAT = "its router sees later tokens"


def leaky(name: str) -> Results:
    """The sample, in which one contestant sees what it should not."""
    made = sample()
    changed = [one.model_copy(update={"caveat": CAVEAT}) if one.name == name else one for one in made.contestants]
    return made.model_copy(update={"contestants": changed})


def test_a_contestant_with_a_caveat_is_held_against_nobody() -> None:
    """`moe` would lead by far; with the caveat another leads, and no figure of `moe` stands against the baseline's."""
    assert judge(sample()).leader == "moe"
    verdict = judge(leaky("moe"))
    assert verdict.leader not in (None, "moe")
    assert "`moe`" not in verdict.headline
    assert "moe" not in verdict.against
    assert verdict.sentences["moe"] == f"`moe` (*) is held against nobody: {CAVEAT}."
    rows = {row.name: row for row in summary_table(leaky("moe"))}
    assert rows["moe"].bits_per_byte.endswith("*")
    assert rows["moe"].reached_flops == rows["moe"].reached_seconds == "–"
    assert not any(row.bits_per_byte.endswith("*") for name, row in rows.items() if name != "moe")
    assert all("moe" not in order for order in order_by_seed(leaky("moe")).values())


def test_a_baseline_with_a_caveat_answers_nothing() -> None:
    verdict = judge(leaky("dense"))
    assert verdict.answer == "No answer"
    assert f"nobody can be held against the baseline `dense`: {CAVEAT}" in verdict.headline
    assert verdict.against == {}


def test_only_a_caveat_to_compare_with() -> None:
    comparison = leaky("moe")
    both = comparison.model_copy(update={"contestants": comparison.contestants[:2]})
    assert "nothing to be compared with" in judge(both).headline


def test_collapsed_layers_are_told() -> None:
    warnings = [f"layer {layer}: 6 of 8 experts get no tokens (step 20)" for layer in range(4)]
    collapsed = run(0, 1.9, experts=8, layers=(0,)).model_copy(update={"warnings": warnings})
    comparison = results(
        [
            contestant("dense", model([DENSE]), [run(0, 2.0)], total=1, active=1),
            contestant("moe", model([MOE]), [collapsed], total=3, active=1),
        ],
        seeds=[0],
    )
    told = [check.text for check in judge(comparison).checks if not check.good]
    assert f"`moe`: the routing collapsed in training; seed 0, {warnings[0]}; seed 0, {warnings[1]}; 2 more." in told


def _with_failures(*, dense: bool, moe: bool) -> Results:
    return results(
        [
            contestant("dense", model([DENSE]), [run(0, 2.0) if dense else failed_run(0)], total=1, active=1),
            contestant("moe", model([MOE]), [run(0, 1.9) if moe else failed_run(0)], total=3, active=1),
        ],
        seeds=[0],
    )


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (_with_failures(dense=False, moe=True), "the baseline `dense` has no finished run"),
        (_with_failures(dense=True, moe=False), "no other contestant finished a seed"),
        (_with_failures(dense=False, moe=False), "no training run came to its end"),
        (two([2.0], [1.9], baseline="nobody"), "the baseline `nobody` has no finished run"),
        (two([2.0], [1.9]).model_copy(update={"contestants": two([2.0], [1.9]).contestants[:1]}), "nothing to be"),
        (two([2.0], [1.9]).model_copy(update={"contestants": []}), "no training run"),
    ],
)
def test_no_answer(comparison: Results, words: str) -> None:
    verdict = judge(comparison)
    assert verdict.answer == "No answer"
    assert words in verdict.headline
    assert verdict.leader is None
    assert len(summary_table(comparison)) == len(comparison.contestants)


def test_references_are_held_against_the_baseline_and_never_lead() -> None:
    """`ngram` ends far below all others, and yet the answer is what it is without it."""
    verdict = judge(everyone())
    assert verdict.leader == "moe"
    assert verdict.answer == judge(sample()).answer
    assert {"gpt3", "lstm", "ngram"} <= verdict.against.keys()
    assert "for reference" in verdict.sentences["ngram"]
    assert "for reference" in verdict.sentences["lstm"]
    assert "for reference" not in verdict.sentences["gpt3"]


def test_a_contestant_without_flops_has_no_ratio_of_them() -> None:
    verdict = judge(everyone())
    reach = verdict.against["ngram"].final
    assert reach.ratios is not None
    assert set(reach.ratios) == {"tokens", "seconds"}
    assert "0.00" not in verdict.sentences["ngram"]
    assert "no FLOPs, for it multiplies nothing" in verdict.sentences["ngram"]
    rows = {row.name: row for row in summary_table(everyone())}
    assert rows["ngram"].reached_flops == "none"
    assert rows["ngram"].reached_seconds.startswith("0.0")
    assert rows["ngram"].params_total == "434 k"


@pytest.mark.parametrize("baseline", ["ngram", "lstm", "gpt3"])
def test_any_of_them_can_be_the_baseline(baseline: str) -> None:
    comparison = everyone().model_copy(update={"baseline": baseline})
    verdict = judge(comparison)
    assert verdict.answer != "No answer"
    assert verdict.leader not in (None, "lstm", "ngram")
    assert set(verdict.sentences) == {one.name for one in comparison.contestants} - {baseline}
    rows = {row.name: row for row in summary_table(comparison)}
    assert rows[baseline].reached_flops == "1 (baseline)"


def test_a_baseline_without_flops_gives_no_ratio_of_them() -> None:
    comparison = results(
        [
            contestant("ngram", NGRAM, [run(0, 2.0, flops=0)], total=10, active=7, flops=0),
            contestant("dense", model([DENSE]), [run(0, 1.9)], total=100, active=100),
        ],
        seeds=[0], baseline="ngram",
    )  # fmt: skip
    verdict = judge(comparison)
    assert verdict.leader == "dense"
    assert "FLOPs" not in verdict.headline
    assert verdict.against["dense"].flops is None
    assert "FLOPs" not in verdict.sentences["dense"]
    assert {row.name: row.reached_flops for row in summary_table(comparison)} == {"ngram": "1 (baseline)", "dense": "–"}


def test_references_alone_answer_nothing() -> None:
    comparison = everyone()
    kept = [one for one in comparison.contestants if one.name in ("dense", "lstm", "ngram")]
    verdict = judge(comparison.model_copy(update={"contestants": kept}))
    assert verdict.answer == "No answer"
    assert "references alone" in verdict.because
    assert set(verdict.sentences) == {"lstm", "ngram"}


def test_an_ngram_model_that_never_finished_has_no_size() -> None:
    failed = contestant("ngram", NGRAM, [failed_run(0)], total=None, active=7, flops=0)
    dense = contestant("dense", model([DENSE]), [run(0, 2.0)], total=1, active=1)
    rows = {row.name: row for row in summary_table(results([dense, failed], seeds=[0]))}
    assert rows["ngram"].params_total == rows["ngram"].reached_flops == "–"


def several(**levels: Sequence[float | None]) -> Results:
    """`dense` and mixtures with these final bits per byte, one a seed; None for a run that failed."""
    made = []
    for name, finals in levels.items():
        layers = [DENSE] if name == "dense" else [MOE]
        runs = [failed_run(seed) if final is None else run(seed, final) for seed, final in enumerate(finals)]
        made.append(contestant(name, model(layers), runs, total=100, active=100))
    return results(made, seeds=range(3), baseline="dense")


def test_who_failed_where_others_finished_does_not_lead() -> None:
    dense, solid = [2.00, 2.01, 2.02], [1.90, 1.91, 1.92]
    for fragile in ([1.80, None, None], [None, 1.80, 1.81]):
        verdict = judge(several(dense=dense, solid=solid, fragile=fragile))
        assert verdict.leader == "solid"
        failed = fragile.count(None)
        assert f"`fragile`, of which {failed} of 3 runs failed, does not lead." in verdict.headline
    # Where all mixtures failed, what is left of them is no proof.
    verdict = judge(several(dense=dense, one=[1.9, None, None], other=[None, None, 1.8]))
    assert verdict.leader is None
    assert verdict.record.reason == "rivals_failed"
    assert "`one`: 2 of 3 runs and `other`: 2 of 3 runs" in verdict.headline


def test_a_baseline_that_failed_does_not_win() -> None:
    verdict = judge(several(dense=[1.80, 1.81, None], a=[1.90, 1.91, 1.92]))
    assert verdict.record.answer == "undecided"
    assert "runs of `dense` failed" in verdict.headline
    verdict = judge(several(dense=[2.00, 2.01, None], a=[1.90, 1.91, 1.92]))
    assert verdict.answer == "Mixture of experts, as far as two seeds can tell"


def test_who_is_surely_better_leads_before_who_seems_so() -> None:
    unsteady, steady = [1.6, 2.1, 1.7], [1.900, 1.911, 1.919]
    verdict = judge(several(dense=[2.00, 2.01, 2.02], unsteady=unsteady, steady=steady))
    assert verdict.leader == "unsteady" or verdict.answer.startswith("Mixture")


def test_intervals_are_for_all_contestants_together() -> None:
    """The same runs beside others say less."""
    alone = judge(several(dense=[2.00, 2.05, 2.02], a=[1.93, 1.96, 1.955]))
    many = {f"m{index}": [2.0 + 0.03 * index, 2.1, 1.9] for index in range(6)}
    together = judge(several(dense=[2.00, 2.05, 2.02], a=[1.93, 1.96, 1.955], **many))
    before, after = alone.against["a"].difference, together.against["a"].difference
    assert before is not None
    assert after is not None
    assert before.mean == after.mean
    assert after.low < before.low < before.high < after.high


def test_seeds_that_disagree_about_the_best_say_so() -> None:
    """Each is held against the pick of the others; where that is not the best of all, the words name both."""
    verdict = judge(several(dense=[2.00, 2.01, 2.02], a=[1.90, 1.99, 1.92], b=[1.97, 1.90, 1.96]))
    assert verdict.leader == "a"
    assert verdict.record.picks == {"a": 1, "b": 2}
    assert verdict.record.candidates == 2
    assert "each seed against the one that the other seeds pick: `b` in 2 seeds and `a` in 1 seed" in verdict.headline
    assert verdict.record.difference is not None
    assert verdict.record.difference.mean == pytest.approx((-0.03 - 0.02 - 0.06) / 3)


def test_a_copy_under_another_name_changes_nothing() -> None:
    dense, moe = [2.00, 2.05, 2.02], [1.99, 2.03, 2.03]
    alone, twice = judge(several(dense=dense, a=moe)), judge(several(dense=dense, a=moe, b=moe))
    assert twice.record.difference == alone.record.difference
    assert twice.answer == alone.answer
    assert judge(several(dense=dense, a=dense)).record.answer == "undecided"


SEEDS = [2.000, 2.010, 2.020, 2.005, 2.015, 2.025]


@pytest.mark.parametrize("missed", [False, True])
@pytest.mark.parametrize("speed", [20_000, 200_000])
def test_a_seed_that_missed_the_level_makes_no_stronger_words(missed: bool, speed: int) -> None:
    """Who is slower is not the answer for each second, whether or not every seed came down to the baseline's level."""
    ends = [figure - 0.02 for figure in SEEDS]
    if missed:
        ends[0] = SEEDS[0] + 0.001
    verdict = judge(two(SEEDS, ends, moe_speed=speed))
    reach = verdict.against["moe"].final
    assert (reach.ratios is None, reach.at_least is None) == (missed, not missed)
    if speed < 50_000:
        assert verdict.answer == "Mixture of experts for each FLOP, dense for each second on this machine"
    else:
        assert verdict.answer == "Mixture of experts"
    if missed:  # no ratio of those that survived
        assert "it needed" not in verdict.headline
        assert (
            "reached `dense`'s final level in 5 of 6 seeds alone; over all seeds it takes more than"
            in (verdict.sentences["moe"])
        )


def test_the_curve_and_the_final_figure_say_the_same() -> None:
    """A curve is measured on less text; its sample may be harder, and it ends at the final figure all the same."""
    comparison = two([2.00, 2.01, 2.02], [1.99, 2.00, 2.01])

    def harder(one: Run) -> Run:
        points = [point.model_copy(update={"bits_per_byte": point.bits_per_byte + 1}) for point in one.curve]
        return one.model_copy(update={"curve": points})

    changed = [
        each.model_copy(update={"runs": [harder(one) for one in each.runs]}) if each.name == "moe" else each
        for each in comparison.contestants
    ]
    moved = judge(comparison.model_copy(update={"contestants": changed}))
    assert moved.against["moe"].final.reached == 3
    assert moved.headline == judge(comparison).headline


def test_the_words_are_made_from_the_record() -> None:
    """What results.json holds is what the page says; without it the same is found again."""
    comparison = everyone()
    record = judge(comparison).record
    kept = Results.model_validate_json(comparison.model_copy(update={"verdict": record}).model_dump_json())
    assert kept.verdict == record
    assert judge(kept) == judge(comparison)
    assert record.answer == "moe"
    assert (record.winner, record.loser, record.reason) == ("moe", "dense", "decided")
    assert record.standings is not None
    other = record.model_copy(update={"answer": "undecided", "reason": "within_seed_noise", "winner": None})
    assert judge(comparison.model_copy(update={"verdict": other})).answer == "No difference was shown"


def test_every_check_has_a_code() -> None:
    codes = [check.code for check in judge(everyone()).checks]
    assert len(set(codes)) >= 4
    assert {"seeds", "runs_failed", "loss_spiked"} <= set(codes)


@pytest.mark.parametrize("moe_speed", [20_000, 500_000])
def test_where_the_baseline_is_better_its_price_is_asked_too(moe_speed: int) -> None:
    """Dense ends a hair lower; where the mixture's whole run takes a tenth of the seconds, dense is not the answer."""
    answer = judge(two([1.999, 2.009, 2.019], [2.000, 2.0101, 2.0202], moe_speed=moe_speed)).answer
    assert answer.startswith("Dense")
    assert ("each" in answer) == (moe_speed > 50_000)


def with_domains(comparison: Results, **changes: dict[str, float]) -> Results:
    """The domains of the text with other figures: `epochs`, or `unigram_bits_per_byte`, by name."""
    domains = [
        domain.model_copy(
            update={field: values[domain.name] for field, values in changes.items() if domain.name in values}
        )
        for domain in comparison.corpus.domains
    ]
    corpus = comparison.corpus.model_copy(update={"domains": domains})
    return comparison.model_copy(update={"corpus": corpus})


def test_text_that_was_read_too_often_is_told_beside_the_verdict() -> None:
    few = with_domains(sample(), epochs=dict.fromkeys(DOMAINS, 4.0))
    assert not any("epochs" in check.text for check in judge(few).checks)
    often = with_domains(sample(), epochs={"law": 9.34, "code": 5.0, "letters": 4.1})
    (check,) = [check for check in judge(often).checks if "epochs" in check.text]
    assert not check.good
    assert "read `code` 5.0 times and `law` 9.3 times and 1 more domain:" in check.text


def test_the_bar_is_each_domains_own() -> None:
    """The mean over domains is no bar for a mean over tokens: an easy domain that is small would lower it."""
    easy = with_domains(sample(), unigram_bits_per_byte={"code": 30.0})
    assert any(check.good and "byte frequencies" in check.text for check in judge(easy).checks)
    hard = with_domains(sample(), unigram_bits_per_byte={"law": 0.5})
    (check,) = [check for check in judge(hard).checks if "byte frequencies" in check.text]
    assert not check.good
    assert "`dense` did not get below byte frequencies alone in `law` (0.500 bits per byte)" in check.text


def test_text_that_was_left_out_is_told_beside_the_verdict() -> None:
    made = sample()
    size = made.corpus.domains[0].train_bytes + made.corpus.domains[0].held_out_bytes
    name = made.corpus.domains[0].name
    lost = LeftOutText(domain=name, reason="near-duplicates", texts=11, bytes=size, example="a.txt")
    gone = LeftOutText(domain="gone", reason="not in UTF-8", texts=2, bytes=9, example="b.txt")
    same = LeftOutText(domain=name, reason="repeats itself", texts=1, bytes=0, example="c.txt")
    little = LeftOutText(domain=made.corpus.domains[1].name, reason="binary", texts=1, bytes=1, example="d.txt")
    corpus = made.corpus.model_copy(update={"left_out": [lost, gone, same, little]})
    found = [check.text for check in judge(made.model_copy(update={"corpus": corpus})).checks if not check.good]
    assert any(text.startswith(f"Of the text of `{name}` 50 %") and "11 near-duplicates" in text for text in found)
    assert any("`gone` 100 %" in text and "2 not in UTF-8" in text for text in found)
    assert f"The text of `{name}` repeats itself." in found
    assert not any("binary" in text for text in found)
