"""The files of a folder, links followed: each once, in an order that does not depend on the disk."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from moekit.data.left_out import Reason
from moekit.data.tables import table_form

HIDDEN = Reason("hidden", is_loss=False)
BROKEN_LINK = Reason("links that lead nowhere", is_loss=False)
NOT_REGULAR = Reason("not regular files", is_loss=False)
UNREADABLE = Reason("unreadable", "give yourself the permission to read it")
ALREADY_READ = Reason("already read", is_loss=False)

Skip = Callable[[Path, Reason], None]


def files_below(root: Path, skip: Skip) -> list[Path]:
    """Find the regular files in a folder and below it.

    Links to files and folders are followed; one that leads back to a folder which holds it, or to what is found without
    it, adds nothing. Of several ways to one file the result holds the one that says what table it is, then the one
    without a link, then the first by name. What begins with a dot is hidden.

    Args:
        root: the folder.
        skip: told of each path that is passed over, and why.
    """
    found: dict[str, Path] = {}
    visited: set[str] = set()
    to_walk = [root]
    while to_walk:
        links: list[Path] = []
        for folder in to_walk:
            links += _walk(folder, visited, found, skip)
        # Folders that are reached without a link come first, so that they are known by their own names.
        to_walk = [link for link in sorted(links) if not _holds(link, root)]
    return sorted(found.values())


def _walk(top: Path, visited: set[str], found: dict[str, Path], skip: Skip) -> list[Path]:
    """Gather the files below `top` into `found`, by what they are; gives the links to folders that it met."""
    links: list[Path] = []

    def unreadable(error: OSError) -> None:
        skip(Path(error.filename), UNREADABLE)

    for folder, subfolders, names in os.walk(top, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        here = Path(folder)
        for name in [name for name in (*subfolders, *names) if name.startswith(".")]:
            skip(here / name, HIDDEN)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        links += [here / name for name in subfolders if (here / name).is_symlink()]
        for name in sorted(name for name in names if not name.startswith(".")):
            path = here / name
            try:
                mode = path.stat().st_mode
            except OSError:
                skip(path, BROKEN_LINK if path.is_symlink() else UNREADABLE)
                continue
            if not stat.S_ISREG(mode):
                skip(path, NOT_REGULAR)
                continue
            file = os.path.realpath(path)
            before = found.get(file)
            if before is not None:
                skip(path, ALREADY_READ)
            found[file] = path if before is None else min(before, path, key=_preference)
    return links


def _preference(path: Path) -> tuple[bool, bool, Path]:
    return table_form(path) is None, path.is_symlink(), path


def _holds(link: Path, root: Path) -> bool:
    """Tell whether a link leads to the root or to a folder that holds it."""
    target = Path(os.path.realpath(link))
    return Path(os.path.realpath(root)).is_relative_to(target)
