"""Names of stored tensors with a prefix more or less than a layout has.

Programs that train wrap a model in others, and models of texts and images hold a model of texts as a part.
"""

from collections.abc import Collection, Iterable, Iterator

# Wherever they stand in a name.
_INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Before a name, in the order in which they are tried.
_OUTER = (
    "module.",
    "base_model.model.",
    "model.language_model.",
    "language_model.",
    "model.text_model.",
    "text_model.",
    "model.",
)


def names_in_layout(names: Iterable[str], layout: Collection[str]) -> dict[str, str]:
    """Find the name in the layout of each stored tensor; one that the layout has not keeps its own."""
    known, roots = set(layout), roots_of(layout)
    return {name: next((one for one in spellings(name, roots) if one in known), name) for name in names}


def roots_of(layout: Iterable[str]) -> list[str]:
    """List what the names of a layout begin with, the dot included."""
    return sorted({name.split(".", 1)[0] + "." for name in layout})


def spellings(name: str, roots: Iterable[str]) -> Iterator[str]:
    """List the names that a stored tensor may have in a layout whose names begin with `roots`, its own first."""
    yield name
    for inner in _INNER:
        name = name.replace(inner, "")
    while True:
        yield name
        yield from (root + name for root in roots)
        outer = next((prefix for prefix in _OUTER if name.startswith(prefix)), None)
        if outer is None:
            return
        name = name.removeprefix(outer)
