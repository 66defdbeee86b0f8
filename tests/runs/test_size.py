from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import nn
from torch.nn.utils import parametrizations

from pwoa_plugin._checked import checked
from pwoa_plugin.method.oneshot import prune_once
from pwoa_plugin.runs.size import SizeReport, size_report


def bitmap_bytes(weight: torch.Tensor) -> int:
    values = weight.detach().numpy().ravel()
    return np.packbits(values != 0).nbytes + values[values != 0].nbytes


def csr_bytes(weight: torch.Tensor) -> int:
    """SciPy's, with its indices in the smallest integers."""
    matrix = sparse.csr_matrix(weight.detach().reshape(len(weight), -1).numpy())
    columns = matrix.indices.astype(np.min_scalar_type(matrix.shape[1] - 1))
    rows = matrix.indptr.astype(np.min_scalar_type(matrix.nnz))
    return int(matrix.data.nbytes + columns.nbytes + rows.nbytes)


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 12), st.integers(1, 70)),
        st.tuples(st.integers(1, 5), st.integers(1, 300), st.just(1), st.just(1)),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3), st.just(3)),
        st.just((2, 65_537)),
    ),
    density=st.floats(0, 1),
    half=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_bytes_are_scipys_and_numpys(shape: tuple[int, ...], density: float, half: bool) -> None:
    dtype = torch.float16 if half else torch.float32
    layer = nn.Linear(1, 1) if len(shape) == 2 else nn.Conv2d(1, 1, 1)
    random = torch.Generator().manual_seed(0)
    weight = (torch.rand(shape, generator=random) < density) * torch.ones(shape, dtype=dtype)
    layer.weight, layer.bias = nn.Parameter(weight), None
    report = size_report(layer)
    (line,) = report.layers
    assert (line.weights, line.nonzero) == (weight.numel(), np.count_nonzero(weight.numpy()))
    assert line.bitmap_bytes == report.bitmap_bytes == bitmap_bytes(weight)
    expected = csr_bytes(weight.float()) - line.nonzero * (2 if half else 0)  # SciPy has no float16
    assert line.csr_bytes == report.csr_bytes == expected
    assert line.dense_bytes == report.dense_bytes == weight.numpy().nbytes
    assert report.sparse_bytes == min(line.dense_bytes, line.bitmap_bytes, line.csr_bytes)


def test_totals_take_the_smallest_format_of_each_layer_and_the_rest_dense() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 300), nn.Linear(300, 3))
    with torch.no_grad():
        model[3].weight.mul_(torch.rand(300, 96) < 0.01)
        model[0].weight.mul_(torch.rand(6, 1, 3, 3) < 0.5)
    report = size_report(model)
    formats = {layer.name: layer.format for layer in report.layers}
    assert formats == {"0": "bitmap", "3": "csr", "4": "dense"}
    state = model.state_dict()
    assert report.dense_bytes == sum(tensor.numpy().nbytes for tensor in state.values())
    rest = report.dense_bytes - sum(state[f"{i}.weight"].nbytes for i in (0, 3, 4))
    weights = [state[f"{i}.weight"] for i in (0, 3, 4)]
    assert report.bitmap_bytes == rest + sum(map(bitmap_bytes, weights))
    assert report.csr_bytes == rest + sum(map(csr_bytes, weights))
    assert report.sparse_bytes == rest + bitmap_bytes(weights[0]) + csr_bytes(weights[1]) + weights[2].nbytes


def test_compression_counts_all_layers_those_left_dense_too(trained: Any) -> None:
    prune_once(trained, 0.5, exclude=["fc2"])
    report = size_report(trained)
    weights = [trained.conv.weight, trained.fc1.weight, trained.fc2.weight]
    nonzero = sum(int(np.count_nonzero(weight.detach().numpy())) for weight in weights)
    assert report.weights == sum(weight.numel() for weight in weights)
    assert report.compression == report.weights / nonzero
    every = np.concatenate([parameter.detach().numpy().ravel() for parameter in trained.parameters()])
    assert report.parameters == len(every)
    assert report.parameter_compression == len(every) / np.count_nonzero(every)


@pytest.mark.parametrize("copied", [False, True])
def test_tied_weights_are_counted_once(copied: bool) -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data) if copied else model[0].weight  # other object, same memory
    report = size_report(model)
    assert (report.weights, report.parameters, report.dense_bytes) == (64, 64, 256)
    assert [layer.tied_to for layer in report.layers] == [None, "0"]
    assert report.sparse_bytes == report.layers[0].sparse_bytes


def test_computed_weights_count_as_they_come_out_and_are_stored_dense() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(9, 7, bias=False)), parametrizations.weight_norm(nn.Linear(9, 7))
    )
    report = size_report(model)
    assert [(layer.weights, layer.format, layer.tied_to) for layer in report.layers] == [(63, "dense", None)] * 2
    assert report.sparse_bytes == report.dense_bytes == sum(p.nbytes for p in model.parameters())


def test_an_emptied_network_has_no_compression() -> None:
    model = nn.Linear(4, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    report = size_report(model)
    assert (report.compression, report.parameter_compression) == (None, None)
    assert json.loads(json.dumps(report.to_dict()))["compression"] is None


def test_a_network_without_values_is_refused() -> None:
    for model in (nn.Linear(3, 3, device="meta"), nn.LazyLinear(3)):
        with pytest.raises(ValueError, match=r"weight: has no values yet"):
            size_report(model)


def test_round_trip_and_table(trained: Any) -> None:
    prune_once(trained, 0.8)
    report = size_report(trained)
    content = json.loads(json.dumps(report.to_dict()))
    assert checked(SizeReport, content, "size") == report
    assert checked(SizeReport, content, "size").to_dict() == content
    table = report.table().to_text()
    for number in (report.weights, report.nonzero, report.dense_bytes, report.sparse_bytes):
        assert f"{number:,}" in table
    assert all(layer.name in table for layer in report.layers)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("dense_bytes",), -1, "size.dense_bytes"),
        (("parameters",), "many", "size.parameters"),
        (("layers", 0, "weights"), 1.5, "size.layers.0.weights"),
        (("layers",), None, "size.layers"),
    ],
)
def test_malformed_content_is_refused_in_one_line(
    trained: Any, path: tuple[Any, ...], value: object, named: str
) -> None:
    content: Any = size_report(trained).to_dict()
    place = content
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=f"^{named}: ") as refused:
        checked(SizeReport, content, "size")
    assert "\n" not in str(refused.value)
