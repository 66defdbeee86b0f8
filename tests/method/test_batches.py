from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from pwoa_plugin.errors import InputError
from pwoa_plugin.method.batches import Batches

X, Y = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10)
CPU = torch.device("cpu")


def make(source: Any, **fields: Any) -> Batches:
    return Batches(source, **{"batch_size": 4, "device": CPU} | fields)


class Stream:
    """Can be read again, and has no length."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches


class OfSamples(IterableDataset[Tensor]):
    """A stream of samples that says how many there are."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.readings = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tensor]:
        self.readings += 1
        return iter(self.images)


SOURCES = {
    "tensors": (X, Y),
    "images": X,
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4),
    "list of batches": [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "list of two image batches": [X[:4], X[4:]],
    "no length": Stream(X.split(5)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_image_once_an_epoch_and_again(name: str) -> None:
    batches = make(SOURCES[name])
    for _ in range(2):
        got = list(batches.epoch(check=True))
        assert len(got) == len(batches)
        x = torch.cat([x for x, _ in got])
        assert sorted(x.sum((1, 2, 3)).tolist()) == sorted(X.sum((1, 2, 3)).tolist())


NINE = TensorDataset(X[:9], Y[:9])
WITH_ONE = {
    "tensors": (X[:9], Y[:9]),
    "loader": DataLoader(NINE, batch_size=4),
    "loader by a sampler": DataLoader(NINE, batch_size=4, sampler=RandomSampler(NINE)),
    "ready batches": DataLoader([(X[:4], Y[:4]), (X[4:8], Y[4:8])], batch_size=1, collate_fn=lambda batch: batch[0]),
    "loader that drops it": DataLoader(NINE, batch_size=4, drop_last=True),
    "loader of a stream": DataLoader(OfSamples(X[:9]), batch_size=4),
    "list": [X[:4], X[4:5], X[5:9]],
    "no length": Stream([X[:4], X[4:8], X[8:9]]),
}


@pytest.mark.parametrize("name", WITH_ONE)
def test_a_batch_of_one_image_is_left_out_and_not_counted(name: str) -> None:
    batches = make(WITH_ONE[name])
    assert [len(x) for x, _ in batches.epoch()] == [4, 4]
    assert len(batches) == 2
    assert batches.read == (2 if name in ("loader that drops it", "ready batches") else 3)


def test_the_length_is_what_the_loader_says() -> None:
    class Limited(DataLoader[Any]):
        def __len__(self) -> int:
            return 1

    assert len(make(Limited(NINE, batch_size=4))) == 1
    two_views = DataLoader(NINE, batch_size=4, collate_fn=lambda items: torch.stack([x for x, _ in items] * 2))
    assert [len(x) for x, _ in make(two_views).epoch()] == [8, 8, 2]
    assert len(make(two_views)) == 3


def test_a_stream_with_a_length_is_not_read_to_count_it() -> None:
    stream = OfSamples(X)
    assert len(make(DataLoader(stream, batch_size=4))) == 3
    assert stream.readings == 0


def test_what_was_read_is_left_out_by_its_number() -> None:
    batches = make([X[:4], X[4:5], X[5:9]])
    epoch = batches.epoch()
    next(epoch)
    assert batches.read == 1
    for start in (1, 2):
        (left,) = batches.epoch(start=start, random_state=batches.random_state())
        assert torch.equal(left[0], X[5:9])
        assert batches.read == 3


def test_a_batch_of_one_that_is_alone_is_given() -> None:
    for source in ((X[:1], Y[:1]), [X[:1]], DataLoader(TensorDataset(X[:1]), batch_size=4)):
        assert [len(x) for x, _ in make(source).epoch()] == [1]


def test_batches_of_one_alone_are_refused() -> None:
    for source in (list(X.split(1)), DataLoader(NINE, batch_size=1), DataLoader(NINE, batch_size=1, drop_last=True)):
        with pytest.raises(ValueError, match=r"^train_loader gives batches of one image"):
            make(source).first(4)


def test_labels_stay_with_their_images() -> None:
    for x, y in make((X, Y), labels_because="the test wants them").epoch():
        assert y is not None
        assert torch.equal(x, X[y])


def test_tensors_are_shuffled_by_the_seed() -> None:
    def order() -> list[float]:
        torch.manual_seed(3)
        return torch.cat([x for x, _ in make((X, Y)).epoch()]).sum((1, 2, 3)).tolist()

    assert order() == order() != X.sum((1, 2, 3)).tolist()


def test_first_gives_as_many_as_there_are() -> None:
    assert len(make((X, Y)).first(6)) == 6
    assert len(make((X, Y)).first(60)) == 10


def test_the_source_is_named_as_its_giver_knows_it() -> None:
    with pytest.raises(ValueError, match=r"^validation is empty"):
        make([], name="validation").first(4)


def test_random_state_has_the_generators_of_a_loader_and_of_its_sampler() -> None:
    data = TensorDataset(X, Y)
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(1))
    batches = make(DataLoader(data, 5, sampler=sampler, generator=torch.Generator().manual_seed(2)))
    state = batches.random_state()
    assert {"loader.0", "loader.1"} <= state.keys()
    first = torch.cat([x for x, _ in batches.epoch()])
    assert not torch.equal(first, torch.cat([x for x, _ in batches.epoch()]))
    batches.set_random_state(state)
    assert torch.equal(first, torch.cat([x for x, _ in batches.epoch()]))


BAD = [
    (None, "train_loader is missing"),
    ([], "train_loader is empty"),
    (TensorDataset(X[:0]), "data set is empty"),
    (iter([(X, Y)]), "read once only"),
    (7, "train_loader is a int"),
    ((X, Y[:3]), "10 images and 3 labels"),
    ([{"picture": X}], r"gives a dict with keys \['picture'\]; name the images"),
    ([{"image": X, "img": X}], r"gives a dict with keys .*, of which \['image', 'img'\] may be images; leave one"),
    ([("a", Y)], "images are a str"),
    ([(X.int(), Y)], "images are a tensor .* of torch.int32; give floats"),
    ([(X[0], Y), (X[1], Y)], "labels are a tensor .* not one-hot"),
    ([(X * 255, Y)], r"pixels reach from .* outside pixel_range=\(0.0, 1.0\); divide them by 255"),
    ([(X * 3, Y)], r"pixels reach from .* outside pixel_range=\(0.0, 1.0\); scale the images"),
    ([(X - 0.6, Y)], "outside pixel_range"),
    ([(X / 255, Y)], r"pixels reach 0.003.* at most, .* as if divided by 255 once too often"),
    ([(X, Y.float())], "labels are a tensor"),
    ([(X, torch.eye(10) * 2)], "labels are a tensor .* not one-hot"),
    ([(X,)], "gives no labels, and hsic needs them"),
    ([X], "gives no labels, and hsic needs them"),
]


@pytest.mark.parametrize(("source", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_clear_line(source: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        make(source, labels_because="hsic needs them").first(4)
    assert "\n" not in str(caught.value)


class Silent(Stream):
    """Promises batches and gives none."""

    def __len__(self) -> int:
        return 3


def test_a_loader_that_gives_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="gave no batch of two images or more"):
        make(Silent([])).first(2)
    with pytest.raises(InputError, match="gives an empty batch; give natural images"):
        make([X[:4], X[:0]]).first(8)
