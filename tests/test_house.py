"""The house: a module's name says what it holds, so one name never stands for two things."""

from collections import defaultdict
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src" / "moekit"

# A kind of model or of layer: its configuration, its module and its families' data.
KINDS = {"attention", "decoder", "encoder", "encoder_decoder", "feed_forward", "norm", "recurrent", "seq2seq", "xlnet"}
# A verb of the command line, and the module that does it.
VERBS = {"doctor"}
# One function: what calls it, and each of its backends.
BACKENDS = {"experts"}


def repeated_names(folder: Path) -> dict[str, list[str]]:
    """Find the names of modules under `folder` that stand in more than one folder, each with those folders."""
    places = defaultdict(list)
    for file in sorted(folder.rglob("*.py")):
        if file.stem != "__init__":
            places[file.stem].append(str(file.parent.relative_to(folder)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_module_name_is_used_for_two_things() -> None:
    repeated = repeated_names(SOURCES)
    assert repeated.keys() - KINDS - VERBS - BACKENDS == set(), repeated


def test_every_name_that_may_repeat_does() -> None:
    assert (KINDS | VERBS | BACKENDS) - repeated_names(SOURCES).keys() == set()


def test_repeated_names_are_found(tmp_path: Path) -> None:
    for name in ("a/base.py", "b/base.py", "b/other.py", "a/__init__.py", "b/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert repeated_names(tmp_path) == {"base": ["a", "b"]}
