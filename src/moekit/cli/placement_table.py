"""What of a model lies where: the table before it is loaded, and the figures after it was used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.kernels.native.block_streaming import RingCounts
    from moekit.kernels.native.expert_streaming import StoreCounts
    from moekit.kernels.native.streaming import StreamingCounts
    from moekit.placement import PlacedModel


def print_placement(placed: "PlacedModel") -> None:
    """Show on standard error what lies in memory and what on disk, and how fast that should be."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for name, text in placement_rows(placed).items():
        table.add_row(name, text)
    Console(stderr=True, highlight=False).print(table)


def placement_rows(placed: "PlacedModel") -> dict[str, str]:
    """Write the table's rows: what each part is, and how much of it lies where."""
    from moekit.core.formatting import bytes_text

    memory, placement = placed.memory, placed.placement
    rows = {
        "budget": f"{bytes_text(placement.budget)} for the whole process",
        "this program": bytes_text(placement.resident_bytes),
        "read by every token": bytes_text(placement.dense_bytes + placement.block_bytes),
        "KV cache": f"{bytes_text(placement.cache_bytes)} for {placement.context:,} tokens",
        "computed in": f"{bytes_text(placement.work_bytes)}, the longest prompt included",
    }
    if placement.ring_bytes:
        on_disk = placement.kept_blocks.count(False)
        parts = f"{on_disk:,} of {len(placement.kept_blocks):,} attention and feed-forward blocks"
        rows["read for every token"] = f"{bytes_text(memory.block_bytes - placement.block_bytes)}, {parts}"
        rows["through a ring of"] = bytes_text(placement.ring_bytes)
    experts = sum(len(layer.spans) for layer in memory.layers if layer is not None)
    if experts:
        kept = sum(placement.places)
        rows["experts in memory"] = f"{kept:,} of {experts:,}, {bytes_text(placement.place_bytes)}"
        if placement.passing:
            rows["passing through"] = f"room for {placement.passing}, {bytes_text(placement.passing_bytes)}"
            rows["experts on disk"] = f"{experts - kept:,}, {bytes_text(memory.expert_bytes - placement.place_bytes)}"
    if placed.bandwidths is not None and placed.speed is not None:
        around = "" if placed.bandwidths.disk_is_direct else " (through the page cache)"
        rows["disk"] = f"{bytes_text(placed.bandwidths.disk)}/s measured on this file{around}"
        speed = placed.speed
        rows["expected"] = f"{speed.expected:.2g} tokens/s ({speed.slow:.2g} to {speed.fast:.2g})"
    return rows


def reading_figures(counts: "StreamingCounts") -> list[str]:
    """Write a line of what was read of each kind.

    `experts: 51 % of uses in memory · 3.21 GB read at 1.40 GB/s · waited 4.2 s for the disk`
    """
    lines = []
    if counts.experts is not None:
        uses = max(1, counts.experts.hits + counts.experts.misses)
        share = f"experts: {100 * counts.experts.hits / uses:.0f} % of uses in memory"
        lines.append(" · ".join([share, *_reading(counts.experts)]))
    if counts.blocks is not None:
        lines.append("attention and feed-forward: " + " · ".join(_reading(counts.blocks)))
    return lines


def _reading(counts: "StoreCounts | RingCounts") -> list[str]:
    from moekit.core.formatting import bytes_text, duration_text

    parts = [f"waited {duration_text(counts.stall_seconds)} for the disk"]
    if counts.bytes:
        parts.insert(0, f"{bytes_text(counts.bytes)} read at {bytes_text(counts.bytes / counts.busy_seconds)}/s")
    return parts


def placement_json(placed: "PlacedModel", counts: "StreamingCounts | None") -> dict[str, Any]:
    """Give what lies where, what was expected, and what was counted, as JSON takes it."""
    from dataclasses import asdict

    return {
        "placement": asdict(placed.placement),
        "bandwidths": None if placed.bandwidths is None else asdict(placed.bandwidths),
        "expected_tokens_per_second": None if placed.speed is None else asdict(placed.speed),
        **(dict.fromkeys(("experts", "blocks")) if counts is None else asdict(counts)),
    }
