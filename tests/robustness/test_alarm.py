from __future__ import annotations

import string

import pytest

from pwoa_plugin.robustness.alarm import _KINDS, make_alarm


@pytest.mark.parametrize("kind", _KINDS)
def test_every_kind_says_what_it_saw_and_what_to_do(kind: str) -> None:
    named = [field for _, field, _, _ in string.Formatter().parse(_KINDS[kind][0]) if field]
    alarm = make_alarm(kind, **dict.fromkeys(named, 7))
    assert alarm.name == kind
    assert all("7" in alarm.saw for _ in named)
    assert str(alarm) == f"{alarm.saw}. {alarm.do}."
    assert "{" not in str(alarm)
