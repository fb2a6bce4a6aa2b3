"""The site: it builds without a warning, and no page fetches anything from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a browser loads by itself; a link that a reader follows may lead anywhere.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(https?:)?//|<link\b[^>]*\bhref=["']?(https?:)?//"""
)
LOADED_BY_STYLE = re.compile(r"""(?:@import\s*|url\()["']?(https?:)?//""")


def fetched(site: Path) -> list[str]:
    """Find the pages and style sheets that would load something from another host."""
    pages = [page for page in site.rglob("*.html") if LOADED.search(page.read_text(encoding="utf-8"))]
    styles = [style for style in site.rglob("*.css") if LOADED_BY_STYLE.search(style.read_text(encoding="utf-8"))]
    return [str(file.relative_to(site)) for file in pages + styles]


def build(root: Path) -> "subprocess.CompletedProcess[str]":
    """Build the site as `make docs` does. With --quiet, MkDocs would not count the warnings either."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Copy what the site is made of."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for folder in ("docs", "src", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(copied: Path) -> None:
    done = build(copied)
    assert done.returncode == 0, done.stderr
    assert fetched(copied / "build" / "site") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken", ["[a page](nowhere.md)", "[a place](train.md#nowhere)", "[a file](../benchmarks/no.py)"]
)
def test_a_broken_link_fails_the_build(copied: Path, broken: str) -> None:
    (copied / "docs" / "index.md").write_text(f"# moekit\n\n{broken}\n", encoding="utf-8")
    assert build(copied).returncode != 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<link rel="stylesheet" href="https://fonts.example/css">'),
        ("a.html", '<script async src="//cdn.example/x.js"></script>'),
        ("a.css", "@import url(https://fonts.example/css);"),
    ],
)
def test_what_comes_from_elsewhere_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "fine.html").write_text('<a href="https://arxiv.org/">paper</a><img src="a.png">', encoding="utf-8")
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert fetched(tmp_path) == [name]
