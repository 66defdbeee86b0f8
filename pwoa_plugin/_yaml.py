"""YAML as people mean it: the core schema of YAML 1.2, plain data only.

PyYAML reads YAML 1.1, in which ``granularity: 2:4`` is the number 124, ``1e-3`` is text and ``no`` is false.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ._text import one_line
from .errors import InputError

__all__ = ["YAMLError", "dump_yaml", "parse_yaml"]


class YAMLError(InputError):
    """Text that is no YAML of ours; one line."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases are not read; write the value out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} comes twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


class _Dumper(yaml.SafeDumper):
    """Quotes what either reader would take for something else than text."""


_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
for _tag, (_pattern, _first) in _CORE.items():
    for _reader in (_Loader, _Dumper):
        _reader.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
        )
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(node.value, 16) if node.value.startswith("0x") else int(node.value),
)


def parse_yaml(text: str | bytes) -> Any:
    """The value of one YAML document.

    Raises:
        YAMLError: it is none, holds an alias or a key twice, or asks for an object; the line says where.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise YAMLError(f"{where}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise YAMLError(one_line(error)) from None
    except RecursionError:
        raise YAMLError("is nested too deeply") from None


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` and YAML 1.1 readers take alike; keys stay in order."""
    return str(
        yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    )
