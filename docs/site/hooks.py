"""Hooks of MkDocs: pages of the site that lie outside docs/, with their links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "examples/*.ipynb")


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: Any) -> Files:
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File(place, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to docs/ from pages outside it."""
    return re.sub(r"\]\(docs/", "](", markdown) if page.file.src_uri.endswith(OUTSIDE[:2]) else markdown


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Links of notebooks to each other and to pages; MkDocs follows only those of Markdown."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1].removeprefix("../docs/"), match[2] or ""
        place = target if match[1].startswith("../docs/") else f"examples/{target}"
        found = files.get_file_from_path(place)
        if found is None:
            raise ValueError(f"{page.file.src_uri}: {match[1]} is no page of the site")
        return f'href="{found.url_relative_to(page.file)}{anchor}"'

    return re.sub(r'href="((?:\.\./docs/)?[\w-]+\.(?:md|ipynb))(#[\w-]+)?"', link, html)
