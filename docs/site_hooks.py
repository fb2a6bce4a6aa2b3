"""Hooks of mkdocs.yml: files beside `docs/` that a page links to become part of the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# From a page, as a code host shows it, to a file of the repository that is not in docs/: (../benchmarks/leak.py)
_OUTSIDE = re.compile(r"\]\(\.\./(benchmarks/[^)#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every such file under its path in the repository; MkDocs warns of a link to one that is not there."""
    root = Path(config.docs_dir).parent
    linked = {name for page in files.documentation_pages() for name in _OUTSIDE.findall(page.content_string)}
    for name in sorted(linked):
        if (root / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where the files are in the site."""
    return _OUTSIDE.sub(r"](\1)", markdown)
