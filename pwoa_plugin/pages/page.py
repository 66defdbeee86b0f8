"""HTML pages that need no other file, no script and no network."""

from __future__ import annotations

from importlib import resources
from typing import Any

from .text import duration, percent, size_text

__all__ = ["render"]


def render(package: str, name: str, **values: Any) -> str:
    """A page from a template that extends ``base.html.j2`` here; all values are escaped.

    Args:
        package: that the template's file is in.
        name: of the file.
        values: for the template; one that is missing is an error.
    """
    import jinja2

    def read(file: str) -> str | None:
        for place in (package, __package__):
            path = resources.files(place).joinpath(file)
            if path.is_file():
                return path.read_text(encoding="utf-8")
        return None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "size": size_text, "duration": duration}
    return environment.get_template(name).render(**values)
