"""YAML as people mean it: the core schema of YAML 1.2, plain data only.

The core schema knows null, true and false, integers and floats; all else is text. YAML 1.1, which other readers follow,
takes ``granularity: 2:4`` for the number 124, ``1e-3`` for text and ``no`` for false. What is written here reads alike
in both.
"""

from __future__ import annotations

import codecs
import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError, MaxDepthExceededError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.error import YAMLError as RuamelError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import BaseResolver, implicit_resolvers
from ruamel.yaml.scanner import Scanner, ScannerError
from ruamel.yaml.tag import Tag

from ._text import one_line, short
from .errors import InputError

_MOST_LEVELS = 100
_MOST_DIGITS = 100  # Python itself refuses to write more than 4,300

_CORE = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
_TAG = "tag:yaml.org,2002:"
_KINDS = {*_CORE, "str", "seq", "map"}
_PLAIN = re.compile(r"[\w ./-]*")  # text that needs no quotes; with : or ? some readers want them


class YAMLError(InputError):
    """Text that is not YAML, or not plain data; one line."""


class _CoreSchema(BaseResolver):
    """Which plain scalars are not text."""

    processing_version = (1, 2)

    def __init__(self, version: Any = None, loader: Any = None) -> None:
        super().__init__(loader)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            for name, pattern in _CORE.items():
                if pattern.fullmatch(value):
                    return Tag(suffix=f"{_TAG}{name}")
        return super().resolve(kind, value, implicit)


class _EitherSchema(_CoreSchema):
    """For writing: text that a reader of YAML 1.2 or 1.1 might misread has another tag, and so is quoted."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if kind is ScalarNode and implicit[0] and tag == self.DEFAULT_SCALAR_TAG:
            misread = any(pattern.match(value) for _, _, pattern, _ in implicit_resolvers)
            return Tag(suffix="!") if misread or not _PLAIN.fullmatch(value) else tag
        return tag


class _Composer(Composer):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            mark = self.parser.peek_event().start_mark
            raise ComposerError(None, None, "aliases are not read; write the value out", mark)
        return super().compose_node(parent, index)


class _Scanner(Scanner):
    def scan_flow_scalar_non_spaces(self, double: Any, start_mark: Any) -> Any:
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError):  # of chr()
            raise ScannerError(None, None, "an escape (\\U...) stands for no character", start_mark) from None


class _Constructor(SafeConstructor):
    def construct_non_recursive_object(self, node: Any, tag: Any = None) -> Any:
        """Explicit tags, as ``!!int x``, name a kind of the core schema, and its text is checked like plain text."""
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in _KINDS:
            tag = str(node.tag).replace(_TAG, "!!")
            raise ConstructorError(None, None, f"tag {tag} is not read; write plain data", node.start_mark)
        if isinstance(node, ScalarNode) and kind in _CORE and not _CORE[kind].fullmatch(node.value):
            raise ConstructorError(None, None, f"{short(node.value)} is no {kind}; leave !!{kind} out", node.start_mark)
        if kind == "int" and len(node.value) > _MOST_DIGITS:
            raise ConstructorError(None, None, f"{short(node.value)} has too many digits", node.start_mark)
        return super().construct_non_recursive_object(node, tag)

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if not isinstance(key, str):
            raise ConstructorError(None, None, f"key {key!r} is not text; quote it", key_node.start_mark)
        return bool(super().check_mapping_key(node, key_node, mapping, key, value))


class _Representer(SafeRepresenter):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_float(self, data: float) -> Any:
        node = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e")  # 1e-05 is text in YAML 1.1
        return node


_Representer.add_representer(float, _Representer.represent_float)


def parse_yaml(text: str | bytes) -> Any:
    """The value of one YAML document. Aliases, Python objects, keys that are not text or come twice are refused."""
    text = _decoded(text) if isinstance(text, bytes) else text
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Scanner = _CoreSchema, _Scanner
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    yaml.composer.warn_double_anchors = False
    yaml.max_depth = _MOST_LEVELS
    try:
        return yaml.load(text)
    except MaxDepthExceededError:
        raise YAMLError("is nested too deeply") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise YAMLError(one_line(f"{where}{error.problem or error.context}")) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YAMLError(f"line {line}: character #x{error.character:04x}: {error.reason}; remove it") from None
    except RuamelError as error:
        raise YAMLError(one_line(error)) from None


def _decoded(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 with its mark."""
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YAMLError(f"line {line}: is not text ({error.reason}); save the file as UTF-8") from None


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` and readers of YAML 1.1 take alike; keys stay in order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = _EitherSchema, _Representer
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.encoding = None  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()
