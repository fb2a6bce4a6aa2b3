"""A trace as a page that a person reads: self-contained, without scripts. Everything in it is data of strangers."""

from itertools import groupby

import jinja2

from moekit.agents.outcome.trace import CallEvent, Trace
from moekit.core.formatting import count_text, duration_text
from moekit.core.messages import Usage


def trace_page(trace: Trace) -> str:
    """Make the whole page, one HTML document; it fetches nothing and its policy lets it run nothing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moekit.agents.outcome", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    whole = max(trace.seconds, 1e-9)
    environment.filters["seconds"] = lambda seconds: f"{seconds:.2f} s"
    environment.filters["share"] = lambda seconds: f"{min(max(100 * seconds / whole, 0), 100):.2f}"
    environment.filters["figures"] = _figures
    # Calls of one stage end side by side, but a nested strategy's stages come between them.
    order = {stage: place for place, stage in enumerate(dict.fromkeys(event.stage for event in trace.events))}
    events = sorted(trace.events, key=lambda event: order[event.stage])
    stages = [(stage, list(group)) for stage, group in groupby(events, key=lambda event: event.stage)]
    return environment.get_template("trace.html").render(trace=trace, stages=stages, summary=_summary(trace))


def _summary(trace: Trace) -> str:
    calls = trace.calls
    parts = [f"{duration_text(trace.seconds)}", _counted(len(calls), "call")]
    if cached := sum(call.cached for call in calls):
        parts.append(f"{cached} of them from the cache")
    usage = sum((call.usage for call in calls if not call.cached), Usage())
    parts.append(f"{count_text(usage.prompt_tokens)} tokens read and {count_text(usage.completion_tokens)} written")
    if any(call.money is not None for call in calls):
        some = "" if all(call.money is not None for call in calls) else " (not every member has a price)"
        parts.append(f"cost {sum(call.money or 0 for call in calls):.4g}{some}")
    if trace.failures:
        parts.append(f"{len(trace.failures)} failed")
    return ", ".join(parts) + "."


def _figures(call: CallEvent) -> str:
    """Say `0.12 to 1.40 s, 210 + 98 tokens, cost 0.0012, 2 attempts`."""
    parts = [f"{call.began:.2f} to {call.ended:.2f} s"]
    if call.usage.total_tokens:
        parts.append(f"{call.usage.prompt_tokens:,} + {call.usage.completion_tokens:,} tokens")
    if call.money:
        parts.append(f"cost {call.money:.4g}")
    if call.cached:
        parts.append("from the cache")
    elif call.attempts != 1:
        parts.append(_counted(call.attempts, "attempt"))
    if call.incomplete is None and call.finish_reason == "length":  # of a trace that an older version wrote
        parts.append("cut off by its length")
    return ", ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
