"""The notebooks run from the first cell to the last: quickly with smaller settings, or as they are with ``-m slow``."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]

# By notebook: settings in its cells, and smaller ones.
SMALLER = {
    "01_quickstart": {"epochs=8": "epochs=2"},
    "02_with_nni_compressors": {
        "STEPS = 240": "STEPS = 12",
        "interval_steps=20, total_times=6": "interval_steps=1, total_times=6",
        "quant_start_step=160": "quant_start_step=8",
    },
    "03_bring_your_own_model": {'"epochs": 4': '"epochs": 2', "max_epochs=3": "max_epochs=1"},
    "04_structured_with_torch_pruning": {"epochs=10": "epochs=2"},
}
EVERYWHERE = {"tensor[:200]": "tensor[:20]"}

FEW_IMAGES = """
import pwoa_plugin.data
from torch.utils.data import TensorDataset

all_images = pwoa_plugin.data.mnist_sample
pwoa_plugin.data.mnist_sample = lambda: tuple(TensorDataset(*data[:512]) for data in all_images())
"""


def make_smaller(notebook: NotebookNode, changes: dict[str, str]) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for old, new in changes.items():
        assert any(old in cell.source for cell in code), f"no cell has {old}"
        for cell in code:
            cell.source = cell.source.replace(old, new)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEW_IMAGES))


@pytest.mark.parametrize("smaller", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["smaller", "as it is"])
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, smaller: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if smaller:
        make_smaller(notebook, SMALLER[path.stem] | EVERYWHERE)
    done = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert all(cell.get("execution_count") for cell in done.cells if cell.cell_type == "code")
