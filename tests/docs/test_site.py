"""The site is built as a reader gets it: no broken link, every page, and a search that finds names."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import pwoa_plugin
from pwoa_plugin._section import Section

ROOT = Path(__file__).parents[2]
PACKAGES = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers", "mkdocs_jupyter")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason='needs pip install "pwoa-plugin[docs]"'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_search_finds_every_public_name(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["title"]: entry["location"] for entry in index["docs"]}
    assert places["PwoAGroupPruner"] == "api/#pwoagrouppruner"
    public = {*dir(pwoa_plugin)} - {"__version__"}
    assert {name: places.get(name, "") for name in public} == {name: f"api/#{name.lower()}" for name in public}


def test_docstrings_and_notebooks_are_rendered(site: Path) -> None:
    api = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert "Remove channels from a robust network" in api
    assert "pruning_ratio" in api
    notebook = (site / "examples" / "01_quickstart" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../runs/' in notebook
    assert "data:image/png;base64" in notebook
    assert (site / "CHANGELOG" / "index.html").exists()


def sections() -> Iterator[type[Section]]:
    """The sections of a config, by its fields."""
    for field in pwoa_plugin.PwoAConfig.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield kind


def test_every_section_of_the_config_is_there() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert {kind.__name__ for kind in sections()} <= set(re.findall(r"^::: pwoa_plugin\.\S+\.(\w+)$", page, re.M))


def test_every_extra_is_in_the_table() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").partition("## Extras")[2]
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(extras)
