from __future__ import annotations

from pwoa_plugin.removal import KeptChannels, ShrunkLayer, SpeedupReport


def test_the_report_as_text() -> None:
    report = SpeedupReport(
        layers={
            "conv1": ShrunkLayer((4, 3), (1, 1), (2,), ()),
            "fc": ShrunkLayer((3, 3), (16, 12), (), (8, 9, 10, 11)),
        },
        kept=(KeptChannels("conv1", "filters", (1, 3), "their constant reaches fc"),),
        zeroed={"bn1.bias": 2, "bn1.weight": 2},
        output_change=0.125,
        error=1.5e-15,
        parameters=(100, 60),
        history=(("conv1", True, (2,)),),
    )
    assert str(report).splitlines() == [
        "parameters 100 -> 60; output differs by 1.5e-15 of its largest value",
        "4 constants zeroed in 2 parameters, which changes the output by 1.2e-01 of its largest value",
        "  conv1  filters 4 -> 3, inputs 1",
        "  fc     filters 3, inputs 16 -> 12",
        "  conv1: 2 dead filters kept: their constant reaches fc",
    ]
