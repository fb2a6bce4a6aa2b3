"""What a ladder comes to, in words that its evidence carries."""

from collections.abc import Sequence

from moekit.comparison.ladder.ladder_schema import (
    ContestantLadder,
    LadderResults,
    LeveragePoint,
    PublishedFigure,
    ScaleAnswer,
)
from moekit.comparison.ladder.target_scale import TargetScale


def flops_text(flops: float) -> str:
    """Write FLOPs as the field does: `3.2e14`."""
    return f"{flops:.2g}".replace("e+", "e")


def leverage_text(point: LeveragePoint) -> str:
    """Write a leverage with its interval."""
    return f"{point.leverage:.2f}× ({point.low:.2f} to {point.high:.2f})"


def at_decade(one: ContestantLadder, decade: float) -> LeveragePoint:
    """Give a contestant's leverage so many decades beyond the ladder's end (0: at it)."""
    beyond = [point for point in one.leverage if point.decades_beyond > 0]
    within = [point for point in one.leverage if point.decades_beyond == 0]
    return min(beyond, key=lambda point: abs(point.decades_beyond - decade)) if decade else within[-1]


def summary_sentences(results: LadderResults) -> list[str]:
    """Say what the ladder found: its span, the held-out rung, the order, leverage at its end and beyond."""
    first, last = results.rungs[0], results.rungs[-1]
    sentences = [
        f"{len(results.rungs)} rungs span a factor of {last.flops / first.flops:.0f} in training FLOPs, from "
        f"{flops_text(first.flops)} to {flops_text(last.flops)}, each with {results.tokens_per_size:.1f} bytes of text "
        "for each N."
    ]
    if results.held_out is None:
        sentences.append("With two rungs nothing could be held out: how well this ladder extrapolates was not tested.")
    else:
        inside, count = results.held_out.inside, len(results.held_out.predictions)
        verdict = "as it should" if inside >= 0.8 * count else "so it extrapolates worse than it says"
        sentences.append(
            f"The largest rung, predicted from the smaller ones, came out within its 80 % interval for {inside} of "
            f"{count} contestants: {verdict}."
        )
    below = [f"{rung.pairs_in_order} of {rung.pairs} at {rung.size}" for rung in results.rungs[:-1]]
    sentences.append(f"Pairs of contestants in the order of the largest rung: {', '.join(below)}.")
    if last.epochs > 1:
        sentences.append(
            f"The largest rung read the text of one domain {last.epochs:.1f} times: what is read again teaches less "
            "than new text, and the laws take that for scale."
        )
    for one in results.contestants:
        if one.leverage:
            at_end, furthest = at_decade(one, 0), one.leverage[-1]
            sides = dict.fromkeys((_side(at_end), _side(furthest)))
            sentences.append(
                f"{one.name} has a leverage of {leverage_text(at_end)} over {results.baseline} at the ladder's end, "
                f"and of {leverage_text(furthest)} at {flops_text(furthest.flops)} FLOPs, three decades beyond it: "
                f"its 80 % intervals lie {' and '.join(sides)}."
            )
    return sentences


def answer(
    results: LadderResults, target: TargetScale, points: dict[str, LeveragePoint], published: Sequence[PublishedFigure]
) -> ScaleAnswer:
    """Answer for the scale that was asked about: by the ladder where it reaches, else by published laws alone."""
    at = f"At {flops_text(target.flops)} FLOPs" + (f" ({target.rule})" if target.rule else "")
    if points:
        beyond = next(iter(points.values())).decades_beyond
        where = f"{beyond:.1f} decades beyond the ladder" if beyond else "within the ladder"
        told = ", ".join(f"{name} {leverage_text(point)}" for name, point in points.items())
        sentences = [f"{at}, {where}, the leverage over {results.baseline} is, by this ladder: {told}."]
    else:
        end = flops_text(results.rungs[-1].flops)
        sentences = [
            f"{at} this ladder, which ends at {end}, says nothing: it speaks up to three decades beyond its end. What "
            "follows is of published laws alone, fitted on other text, architectures and sizes."
        ]
    sentences += [
        sentence
        for name in dict.fromkeys(figure.contestant for figure in published)
        if (sentence := _published_sentence(name, [one for one in published if one.contestant == name]))
    ]
    return ScaleAnswer(
        asked=target.asked,
        flops=target.flops,
        rule=target.rule,
        by="ladder" if points else "published laws",
        leverage=points,
        published=list(published),
        sentences=sentences,
    )


def _published_sentence(name: str, figures: Sequence[PublishedFigure]) -> str | None:
    """Say what published laws say of one mixture, and which of them were fitted there; None where none speaks of it."""
    said = {figure.law: figure.leverage for figure in figures if figure.leverage is not None}
    if not said:
        return None
    fitted = [f"{figure.law} {figure.leverage:.2f}×" for figure in figures if figure.within_its_range]
    there = f"fitted there: {', '.join(fitted)}" if fitted else "none of them was fitted there"
    return f"{len(said)} published laws for {name}: {min(said.values()):.2f}× to {max(said.values()):.2f}×; {there}."


def _side(point: LeveragePoint) -> str:
    """Say on which side of 1 an interval lies."""
    return "above 1" if point.low > 1 else "below 1" if point.high < 1 else "on both sides of 1"
