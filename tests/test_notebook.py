from __future__ import annotations

import json

from pwoa_plugin._notebook import Allocations, History, fragment
from pwoa_plugin.method.allocation import LayerAllocation
from pwoa_plugin.pages import Table


def test_a_history_is_a_list_and_a_table() -> None:
    epochs = [{"phase": "admm", "epoch": 1, "loss": 0.123456}, {"phase": "<b>", "epoch": 2, "residual": None}]
    history = History(epochs)
    assert history == epochs
    assert json.loads(json.dumps(history)) == epochs
    shown = history._repr_html_()
    assert all(text in shown for text in ("<table>", "phase", "residual", "0.1235", "&lt;b&gt;"))
    assert "No epoch" in History()._repr_html_()


def test_an_allocation_is_a_dict_and_a_table() -> None:
    layers = {"a": LayerAllocation((2, 3), 6, 3), "b\x1b": LayerAllocation((4,), 4, 4, "one-dimensional")}
    allocation = Allocations(layers)
    assert allocation == layers
    assert allocation["a"].density == 0.5
    shown = allocation._repr_html_()
    assert all(text in shown for text in ("2x3", "50.00%", "one-dimensional", "total", "70.00%", r"b\x1b"))
    assert "total" in Allocations()._repr_html_()


def test_all_text_of_a_fragment_is_escaped() -> None:
    shown = fragment("<i>", Table("t", ["<h>"], [["<c>"]]), ["<l>", "\x1b"], [])
    assert all(f"&lt;{letter}&gt;" in shown for letter in "ihcl")
    assert "\x1b" not in shown
    assert shown.count("<li>") == 2
