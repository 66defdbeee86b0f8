"""Runs in two processes beside one; what each process does is in tests/in_ranks.py."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import in_ranks
import pytest
import torch
from conftest import CONFIG
from launched import launch, start

from pwoa_plugin.runs.folder import RunFolder

SCALE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[in_ranks.Told]:
    root = tmp_path_factory.mktemp("pictures")
    in_ranks.write_pictures(root)
    (snippet,) = re.findall(r"```python\n(.*?)```", SCALE.read_text(encoding="utf-8"), re.DOTALL)
    return launch(in_ranks.train, root, snippet)


@pytest.mark.parametrize("kind", ["runs", "files"])
def test_processes_end_equal_to_the_bit(trained: list[in_ranks.Told], kind: str) -> None:
    first, second = (told[kind] for told in trained)
    for name, one in first.items():
        for part in ("weights", "masks"):
            assert one[part].keys() == second[name][part].keys()
            for key, tensor in one[part].items():
                assert torch.equal(tensor, second[name][part][key]), (name, key)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", {}),
        ("accumulated", {}),
        ("checkpointed", {}),
        ("gathered", in_ranks.GATHERED),
    ],
)
def test_two_processes_are_one_where_the_loss_is_a_mean(
    trained: list[in_ranks.Told], name: str, options: dict[str, object]
) -> None:
    alone = in_ranks.pruned(in_ranks.plain_config(**options))
    there = trained[0]["runs"][name]
    for key, mask in alone["masks"].items():
        assert torch.equal(mask, there["masks"][key]), key
    for key, weight in alone["weights"].items():
        torch.testing.assert_close(there["weights"][key], weight, rtol=0, atol=1e-6)


def test_processes_draw_the_same_terms(trained: list[in_ranks.Told]) -> None:
    first, second = (told["drawn"] for told in trained)
    assert first == second
    assert len(first) == 12
    assert all(step["distillation"] for step in first)
    for name in ("features", "gradients", "hsic_x", "hsic_y"):
        assert {step[name] for step in first} == {True, False}, name


def test_no_image_is_lost_or_seen_twice(trained: list[in_ranks.Told]) -> None:
    first, second = (told["images"] for told in trained)
    assert first == second
    for name, (of_first, of_second) in first.items():
        assert sorted(of_first + of_second) == list(range(45)), name
        assert abs(len(of_first) - len(of_second)) <= 6, name


def test_no_file_is_lost_or_read_twice(trained: list[in_ranks.Told]) -> None:
    for name, found in trained[0]["files"].items():
        of_first, of_second = found["read"]
        assert sorted(of_first + of_second) == list(range(44)), name
        assert abs(len(of_first) - len(of_second)) <= 6, name


def test_networks_are_pruned_from_files(trained: list[in_ranks.Told]) -> None:
    for name, found in trained[0]["files"].items():
        kept = torch.cat([mask.flatten() for mask in found["masks"].values()]).float().mean()
        assert kept == pytest.approx(0.5, abs=0.01), name


def test_what_differs_is_refused_in_one_line_by_all(trained: list[in_ranks.Told]) -> None:
    first, second = (told["refused"] for told in trained)
    assert first == second
    assert first == {
        "config": "eps of rank 1 is not that of rank 0; start all processes with the same config and the same packages",
        "network": "the model of rank 1 is not that of rank 0; give all processes the same weights",
        "length": "the number of batches in train_loader of rank 1 is not that of rank 0; give all processes the same "
        "images",
        "stream": "train_loader: a Stream cannot be split among 2 processes; give a Dataset, a DataLoader of one, or "
        "tensors, or set its attribute sharded = True once each process reads only its own part",
        "split stream": "nothing",
        "batch_size": "train_loader gives no batch of two images for each of 2 processes; give larger ones",
        "pixels": "rank 1: train_loader: images hold NaN or infinite pixels; mend or leave out those images",
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> tuple[list[in_ranks.Told], Path]:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "prune.yaml").write_text(CONFIG.replace("ROOT", str(mnist_root)))
    return launch(in_ranks.run_and_resume, folder, folder / "prune.yaml"), folder


def test_a_run_resumes_in_as_many_processes_to_the_bit(runs: tuple[list[in_ranks.Told], Path]) -> None:
    (first, second), folder = runs
    assert first["whole"] == second["whole"] == first["resumed"] == second["resumed"]
    assert first["stopped"][0] == second["stopped"][0] == "stopped by signal 15"
    assert first["again"][0] == "finished"
    assert RunFolder(folder / "whole").read_facts().processes == 2


def test_a_run_goes_on_in_one_process(runs: tuple[list[in_ranks.Told], Path], caplog: pytest.LogCaptureFixture) -> None:
    (first, _), folder = runs
    assert first["left"] == "stopped by signal 15"
    assert first["saved"][0]
    with caplog.at_level(logging.WARNING):
        in_ranks.resume_alone(folder)
    assert "begun in 2 processes, resumed in 1: not bit for bit" in caplog.text
    assert RunFolder(folder / "left").read_facts().status == "finished"


def test_commands_speak_by_rank_0(runs: tuple[list[in_ranks.Told], Path]) -> None:
    (told, _), folder = runs
    (status, said), (other, silent) = told["command"]
    assert (status, other, silent) == (0, 0, "")
    assert "Its report is" in said
    assert (folder / "command" / "report.html").exists()
    for name, line in {
        "refused": "pwoa prune: error: data.root='nowhere': ",
        "differs": "pwoa prune: error: eps of rank 1 is not that of rank 0; ",
        "one fails": "pwoa prune: error: rank 1: ",
    }.items():
        (status, said), (other, silent) = told[name]
        assert (status, other, silent) == (2, 2, ""), name
        assert said.startswith(line)
        assert said.count("\n") == 1


def test_a_killed_process_ends_the_other_in_one_line(tmp_path: Path) -> None:
    context = start(in_ranks.lose_one, tmp_path)
    for process in context.processes:
        process.join(60)
    assert [process.exitcode for process in context.processes] == [0, -9]
    said = (tmp_path / "told").read_text()
    assert said.startswith("another process of the 2 has ended, or did not answer within 600 s; ")
    assert said.endswith("; as before: True")
