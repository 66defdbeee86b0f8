"""The demo from end to end, on few images; `make demo` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pwoa_plugin import Report, demo


def test_demo_prunes_judges_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--epochs", "2", "--images", "1024", "--judged", "40", "--attacked", "0", "--quiet"]
    demo.main([*few, "--compression", "8", "--out", str(tmp_path)])
    shown = capsys.readouterr()
    assert shown.err == ""
    table = (tmp_path / "table.md").read_text()
    methods = ["dense", "magnitude, one-shot", "magnitude + cross-entropy", "PwoA as published", "PwoA (default)"]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]
    assert [row[0].split(", 2 ep")[0] for row in cells] == methods
    kept = [int(row[1].replace(",", "")) for row in cells]
    assert kept[0] == 417_168  # every weight of convolutions and linear layers
    assert all(count == kept[0] // 8 for count in kept[1:])
    clean = [float(row[2].rstrip("%")) for row in cells]
    assert clean[0] > 90
    assert clean[4] > 80
    assert "magnitude" in shown.out
    assert all(row[6] == "not run" for row in cells)
    assert (tmp_path / "robustness.png").read_bytes().startswith(b"\x89PNG")
    judged = Report.from_json(tmp_path / "4-judged.json")
    assert judged.clean == pytest.approx(clean[4] / 100, abs=1e-3)
    assert set(judged.attacks) == {"FGSM", "PGD-20", "CW"}
    assert judged.worst_case.accuracy > Report.from_json(tmp_path / "2-judged.json").worst_case.accuracy


def test_nonsense_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--compression", "1"], ["--epochs", "1"]):
        with pytest.raises(SystemExit) as caught:
            demo.main(arguments)
        assert caught.value.code == 2
        assert "--compression above 1" in capsys.readouterr().err
