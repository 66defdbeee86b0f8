"""HTML pages that need no other file, no script and no network."""

from __future__ import annotations

from typing import Any

from .._text import visible
from .text import duration, interval_text, percent, size_text


def _finalize(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # Markup is our own, and done


def render(package: str, name: str, **values: Any) -> str:
    """A page from a template that extends ``base.html.j2``. Values are escaped; a missing one is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(place, "") for place in (package, __package__)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "size": size_text, "duration": duration}
    environment.globals["interval"] = interval_text
    return environment.get_template(name).render(**values)
