"""Which streams are taken as split among processes; runs in two processes are in test_distributed.py."""

from __future__ import annotations

import functools
from typing import Any

import datasets
import pytest
import torch
import webdataset as wds
from accelerate.data_loader import prepare_data_loader
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from pwoa_plugin.errors import InputError
from pwoa_plugin.method.shares import share_of

SHARDS = "{0..3}.tar"


@pytest.fixture(autouse=True)
def in_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, number)


def of_shards(splitter: Any = None, **options: Any) -> Any:
    return wds.WebDataset(SHARDS, nodesplitter=splitter, shardshuffle=False, **options)


def in_stages(*stages: Any) -> Any:
    return wds.DataPipeline(*stages, wds.split_by_worker, wds.tarfile_to_samples(), wds.batched(4))


class Stream(IterableDataset[Any]):
    sharded = False

    def __iter__(self) -> Any:
        return iter([])


def said_of(data: Any) -> Any:
    data.sharded = True
    return data


def split_by_hugging_face() -> Any:
    data = datasets.Dataset.from_dict({"label": [0, 1]}).to_iterable_dataset()
    return split_dataset_by_node(data, 0, 2).with_format("torch")


def images(**options: Any) -> Any:
    data = TensorDataset(torch.zeros(8, 1, 4, 4))
    return wds.WebLoader(data, batch_size=4, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(of_shards(wds.split_by_node).decode("torch"), batch_size=4),
        lambda: DataLoader(of_shards(wds.split_by_node).batched(4).with_length(3, silent=True), batch_size=None),
        lambda: wds.WebLoader(of_shards(wds.split_by_node), batch_size=4).unbatched().batched(8).with_epoch(5),
        lambda: DataLoader(of_shards(functools.partial(wds.split_by_node, group=None)), batch_size=4),
        lambda: DataLoader(of_shards(resampled=True).with_epoch(8), batch_size=4),
        lambda: in_stages(wds.SimpleShardList(SHARDS), wds.split_by_node),
        lambda: in_stages(wds.ResampledShards(SHARDS)),
        lambda: in_stages(wds.SimpleShardList(SHARDS), wds.resampled()),
        lambda: wds.RandomMix([of_shards(wds.split_by_node), of_shards(resampled=True)]),
        lambda: images(sampler=DistributedSampler(range(8), 2, 0)),
        lambda: prepare_data_loader(DataLoader(torch.zeros(8, 1), batch_size=4), num_processes=2, process_index=0),
        lambda: wds.WebLoader(split_by_hugging_face(), batch_size=4),
        lambda: said_of(of_shards()),
        lambda: wds.WebLoader(said_of(of_shards()), batch_size=4),
        lambda: DataLoader(said_of(Stream()), batch_size=4),
        lambda: DataLoader(split_by_hugging_face(), batch_size=4),
    ],
)
def test_a_stream_that_is_split_is_taken_as_it_is(make: Any) -> None:
    assert share_of(make(), "train_loader").sizes() is None


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("WebDataset", lambda: DataLoader(of_shards().shuffle(8).decode("torch").to_tuple("png", "cls"), batch_size=4)),
        ("WebDataset_Length", lambda: DataLoader(of_shards().batched(4).with_length(3, silent=True), batch_size=None)),
        ("WebDataset", lambda: DataLoader(of_shards(lambda shards: shards), batch_size=4)),
        ("WebLoader", lambda: wds.WebLoader(of_shards(), batch_size=4).unbatched().batched(8)),
        ("DataPipeline", lambda: in_stages(wds.SimpleShardList(SHARDS), wds.shuffle(4))),
        ("RandomMix", lambda: DataLoader(wds.RandomMix([of_shards(wds.split_by_node), of_shards()]), batch_size=4)),
        ("WebLoader", lambda: images(shuffle=True)),
        ("WebLoader", lambda: wds.WebLoader(Stream(), batch_size=4)),
    ],
)
def test_shards_that_every_process_reads_are_refused_in_one_line(kind: str, make: Any) -> None:
    with pytest.raises(InputError) as caught:
        share_of(make(), "train_loader")
    assert str(caught.value) == (
        f"train_loader: a {kind} cannot be split among 2 processes; give a Dataset, a DataLoader of one, or tensors, "
        "or give it wds.split_by_node (as nodesplitter), or set its attribute sharded = True once each process reads "
        "only its own part"
    )


def test_other_streams_are_refused_with_their_cure() -> None:
    whole = datasets.Dataset.from_dict({"label": [0, 1]}).to_iterable_dataset().with_format("torch")
    for data, cure in (
        (whole, r"split it by datasets.distributed.split_dataset_by_node\(data, rank, world_size\)$"),
        (Stream(), "set its attribute sharded = True once each process reads only its own part$"),
    ):
        with pytest.raises(InputError, match=f"cannot be split among 2 processes; .* or tensors, or {cure}"):
            share_of(DataLoader(data, batch_size=4), "train_loader")


def test_webdataset_refuses_several_processes_by_default() -> None:
    """Why such a pipeline is taken: its own message says what to do."""
    loader = DataLoader(wds.WebDataset(SHARDS, shardshuffle=False), batch_size=4)
    assert share_of(loader, "train_loader").sizes() is None
    with pytest.raises(ValueError, match="add an explicit nodesplitter"):
        next(iter(loader))
