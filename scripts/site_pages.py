"""A hook of mkdocs: pages that lie outside docs/ join the site, and links that leave the site become plain words.

Enters: the files of docs/ and the pages named in OUTSIDE. Leaves: the same pages with links that the site can follow. A
link to a file of the repository that is no page keeps its words and loses its target, since the site does not know
where the repository is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "plugins/README.md": "contract.md",
    "helm/plaudit/README.md": "chart.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages from outside; list the decisions in order of their numbers."""
    for source, page in OUTSIDE.items():
        text = rewritten((ROOT / source).read_text(encoding="utf-8"), source, page)
        files.append(File.generated(config, page, content=text))
    return files


def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    """Fill the place of the decisions with their pages, by number; pages that have no place yet come last."""
    pages = [f"adr/{path.name}" for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    nav = config.nav or []
    for part in nav:
        for title, target in part.items():
            if target == "adr":
                part[title] = pages
    named = set(_pages(nav))
    others = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in named]
    if others:
        nav.append({"More": others})
    return config


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages(part)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page that lies in docs/; those from outside were rewritten when they were added."""
    source = f"docs/{page.file.src_uri}"
    if page.file.src_uri in OUTSIDE.values():
        return markdown
    return rewritten(markdown, source, page.file.src_uri)


def rewritten(text: str, source: str, page: str) -> str:
    """The text of `source` (a path in the repository) with links as `page` (a path in the site) must write them."""
    fenced = False
    lines = []
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        lines.append(line if fenced else _LINK.sub(lambda match: _link(match, source, page), line))
    return "\n".join(lines)


def _link(match: re.Match[str], source: str, page: str) -> str:
    image, words, target, anchor = match[1], match[2], match[3], match[4] or ""
    path = os.path.normpath(PurePosixPath(source).parent / target)
    there = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if there is None or not (ROOT / path).is_file():
        return f"{image}{words}" if image else words
    return f"{image}[{words}]({os.path.relpath(there, PurePosixPath(page).parent)}{anchor})"
