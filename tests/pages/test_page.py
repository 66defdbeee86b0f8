from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
from pages.parsed import Page

from pwoa_plugin.pages import Table, render
from pwoa_plugin.pages.sections import Block, Folded, Plots, Section

TEMPLATE = """{% extends "base.html.j2" %}
{% from "macros.html.j2" import remarks, section with context %}
{% block title %}{{ said }}{% endblock %}
{% block main %}<h1>{{ said }}</h1>{{ remarks([said]) }}{{ section(of) }}<b>{{ 0.25 | percent }}</b>{% endblock %}
"""
Package = Callable[[str], str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Called with the text of a template, ``page.html.j2``: the name of a package that has it."""

    def made(text: str) -> str:
        (tmp_path / "of_a_page").mkdir()
        (tmp_path / "of_a_page" / "__init__.py").touch()
        (tmp_path / "of_a_page" / "page.html.j2").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return "of_a_page"

    return made


def section_of(said: str) -> Section:
    table = Table(said, ["a", "share"], [[said, "50.00%"]])
    return Section(said, [said, Plots([], beside=[table, Folded(said, Block(said))])])


def test_values_are_text_and_the_page_is_whole(package: Package) -> None:
    name = "<script>alert(1)</script> & \"'"
    page = Page(render(package(TEMPLATE), "page.html.j2", said=name, of=section_of(name)))
    assert page.text("h1") == page.text("title") == name
    assert page.attributes("aria-label") == ["Before you rely on it", name]
    assert page.text("li") == page.text("p") == page.text("summary") == page.text("pre") == name
    assert "50.00%" in page.text("td")
    assert page.text("b") == "25.00%"
    assert "script" not in {tag for tag, _ in page.tags}


def test_the_page_may_load_nothing(package: Package) -> None:
    page = Page(render(package(TEMPLATE), "page.html.j2", said="a", of=section_of("a")))
    assert page.attributes("http-equiv") == ["Content-Security-Policy"]
    assert any(content.startswith("default-src 'none'") for content in page.attributes("content"))
    assert page.attributes("src") == page.attributes("href") == []


def test_a_value_that_is_missing_is_an_error(package: Package) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'said' is undefined"):
        render(package(TEMPLATE), "page.html.j2")
