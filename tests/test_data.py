"""Data in the forms that people have it: the same images give the same masks and the same verdicts in every door."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas
import pytest
import torch
from conftest import EVERY_STEP
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pwoa_plugin import (
    PwoAConfig,
    PwoADistiller,
    PwoAGroupPruner,
    PwoALoss,
    PwoAPruner,
    compare,
    evaluate,
    make_evaluator,
)
from pwoa_plugin._data import as_images, as_labels
from pwoa_plugin.robustness.curve import security_curve

N, SIZE = 24, 8
BYTES = torch.randint(0, 256, (N, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).byte()
X, Y = BYTES.float() / 255, torch.arange(N) % 4
CHANNELS_LAST = BYTES.permute(0, 2, 3, 1).numpy()
PICTURES = [Image.fromarray(pixels) for pixels in CHANNELS_LAST]
BATCHES = [(X[:16], Y[:16]), (X[16:], Y[16:])]


class Samples(Dataset[Any]):
    def __init__(self, sample: Callable[[int], Any]) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


class Columns:
    """As Hugging Face's data sets are: no torch Dataset, and no Mapping."""

    column_names = ("img", "label")

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"img": PICTURES[index], "label": int(Y[index])}


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(X, Y, strict=True)


class Batch(NamedTuple):
    label: Tensor
    image: Tensor


def one_hot() -> Tensor:
    return nn.functional.one_hot(Y, 4)


WHOLE: dict[str, Any] = {
    "tensor and array": (X, Y.numpy()),
    "tensor and list": (X, Y.tolist()),
    "a list of tensor and tuple": [X, tuple(Y.tolist())],
    "arrays": (X.numpy(), Y.numpy()),
    "nested lists": (X.tolist(), Y.tolist()),
    "a list of images": (list(X), list(Y)),
    "(x, y, index)": (X, Y, torch.arange(N)),
    "a dict": {"image": X, "label": Y},
    "float64": (X.double(), Y),
    "float64 array": (X.double().numpy(), Y.numpy().astype(np.uint8)),
    "big-endian array": (X.numpy().astype(">f4"), Y.numpy().astype(">i2")),
    "array with negative strides": (X.flip(0).numpy()[::-1], Y),
    "uint8": (BYTES, Y.int()),
    "uint8 array": (BYTES.numpy(), Y),
    "uint8 array, channels last": (CHANNELS_LAST, Y),
    "PIL images": (PICTURES, Y.tolist()),
    "labels in a column of pandas": (X, pandas.Series(Y.numpy())),
    "one-hot": (X, one_hot()),
    "one-hot floats": (X, one_hot().float().numpy()),
    "labels (N, 1)": (X, Y[:, None]),
    "pixels a little beyond the range": (torch.where(X == 1, 1 + 5e-5, torch.where(X == 0, -5e-5, X)), Y),
}
DATASETS: dict[str, Any] = {
    "TensorDataset": TensorDataset(X, Y),
    "Subset": Subset(TensorDataset(X, Y), range(N)),
    "of PIL images": Samples(lambda i: (PICTURES[i], int(Y[i]))),
    "of uint8 arrays, channels last": Samples(lambda i: (CHANNELS_LAST[i], np.int64(Y[i]))),
    "of dicts": Samples(lambda i: {"pixel_values": BYTES[i], "labels": int(Y[i])}),
    "of (x, y, index)": Samples(lambda i: (X[i], int(Y[i]), i)),
    "of one-hot labels": Samples(lambda i: (X[i], one_hot()[i])),
    "Hugging Face's": Columns(),
    "a list of samples": [(X[i], int(Y[i])) for i in range(N)],
    "a list of PIL samples": [(PICTURES[i], int(Y[i])) for i in range(N)],
}
BATCHED: dict[str, Any] = {
    "lists": [[x, y.tolist()] for x, y in BATCHES],
    "arrays": tuple((x.numpy(), y.numpy()) for x, y in BATCHES),
    "(x, y, index)": [(x, y, ["a"] * len(x)) for x, y in BATCHES],
    "dicts": [{"img": x, "targets": y} for x, y in BATCHES],
    "namedtuples": [Batch(y, x) for x, y in BATCHES],
    "uint8, channels last": [(CHANNELS_LAST[:16], Y[:16]), (CHANNELS_LAST[16:], Y[16:])],
    "DataLoader": DataLoader(TensorDataset(X, Y), 16),
    "DataLoader of arrays": DataLoader(Samples(lambda i: (CHANNELS_LAST[i], int(Y[i]))), 16),
    "DataLoader of dicts": DataLoader(Samples(lambda i: {"x": BYTES[i], "y": int(Y[i])}), 16),
    "DataLoader of a stream": DataLoader(Streamed(), 16),
    "DataLoader of lists of samples": DataLoader(Samples(lambda i: (PICTURES[i], int(Y[i]))), 16, collate_fn=list),
}
FORMS = {f"{kind}: {name}": data for kind, forms in (
    ("whole", WHOLE), ("Dataset", DATASETS), ("batches", BATCHED)
) for name, data in forms.items()}  # fmt: skip


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()


def config(data: Any, **fields: Any) -> PwoAConfig:
    given = {"sparsity": 0.5, "train_loader": data, "epochs": 1, "batch_size": 16, "eps": 0.1, "progress": False}
    return PwoAConfig(**given | fields)  # type: ignore[arg-type]


def masks(data: Any) -> Tensor:
    _, found = PwoAPruner(network(), config(data)).compress()
    return torch.cat([mask.flatten() for of_layer in found.values() for mask in of_layer.values() if mask is not None])


JUDGE: dict[str, Any] = {"eps": 0.03, "attacks": ["FGSM"], "progress": False, "alarms": False}


def verdicts(data: Any) -> list[bool]:
    report = evaluate(network(), data, **JUDGE)
    return [*report.clean_correct.tolist(), *report.attacks["FGSM"].robust.tolist()]


@functools.cache
def expected_masks(batched: bool) -> Tensor:
    return masks(BATCHES if batched else (X, Y))


@functools.cache
def expected_verdicts() -> list[bool]:
    return verdicts((X, Y))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORMS)
def test_the_same_images_give_the_same_masks_and_verdicts(name: str) -> None:
    assert torch.equal(masks(FORMS[name]), expected_masks(name.startswith("batches")))
    assert verdicts(FORMS[name]) == expected_verdicts()


def trained(batches: Any) -> Tensor:
    model = network()
    evaluator = make_evaluator(model, batches, lr=0.1)
    options: dict[str, Any] = {"perturbation": {"kind": "none"}, "origin_loss_lambda": 1.0}  # loaders draw seeds
    distiller = PwoADistiller(model, [], evaluator, network(), **options)
    distiller.compress(max_steps=2)
    distiller.unwrap_model()
    return model.state_dict()["0.weight"]


@functools.cache
def trained_by_batches() -> Tensor:
    return trained(BATCHES)


@pytest.mark.parametrize("name", BATCHED)
def test_an_evaluator_s_batches_are_read_alike(name: str) -> None:
    torch.testing.assert_close(trained(BATCHED[name]), trained_by_batches())


def test_other_doors_take_them_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pwoa_plugin")
    data = (BYTES.numpy(), Y.tolist())
    said = "images are 8-bit: 0 to 255 are scaled to pixel_range=(0.0, 1.0)"
    report = compare({"a": network(), "b": network()}, data, **JUDGE).reports["b"]
    assert report.clean_correct.tolist() == expected_verdicts()[:N]
    assert report.notes == (said,)
    assert security_curve(network(), data, **JUDGE | {"eps": [0.03], "attack": "FGSM"}).n_images == N  # type: ignore
    few = {name: value for name, value in JUDGE.items() if name == "progress"}
    assert security_curve(network(), data, eps=[0.03], attack="FGSM", **few).n_images == N
    loss = PwoALoss(network(), eps=0.1, **EVERY_STEP)
    values = []
    for x, y in (data, (X, Y)):
        torch.manual_seed(0)
        values.append(loss(network(), x, y).item())
    assert values[0] == values[1]
    caplog.clear()
    pruner = PwoAGroupPruner(network(), X[:1], config=config(data, granularity="structured", epochs=2))
    pruner.compress()
    assert [message for message in caplog.messages if "8-bit" in message] == [f"train_loader: {said}"]


def test_8_bit_images_are_scaled_to_the_pixel_range_that_is_given() -> None:
    assert torch.equal(as_images(BYTES, (0.0, 255.0), "x"), BYTES.float())
    torch.testing.assert_close(as_images(BYTES, (-1.0, 1.0), "x"), X * 2 - 1)
    report = evaluate(network(), (BYTES, Y), **JUDGE | {"eps": 8, "pixel_range": (0, 255)})
    assert report.notes == ("images are 8-bit: 0 to 255 are scaled to pixel_range=(0.0, 255.0)",)


def test_grey_and_odd_pictures() -> None:
    picture = PICTURES[0]
    for mode, channels in (("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)):
        assert as_images([picture.convert(mode)], (0.0, 1.0), "x").shape == (1, channels, SIZE, SIZE)
    assert torch.equal(as_images([picture.convert("RGBA")], (0.0, 1.0), "x"), X[:1])


def test_one_pass_data_is_judged_and_unlabelled_data_is_pruned_with() -> None:
    assert verdicts(iter(BATCHES)) == verdicts(batch for batch in BATCHES) == expected_verdicts()
    without = {"hsic": {"lambda_y": 0}}
    for data in (X, X.numpy(), (X, None), PICTURES, Samples(lambda i: (X[i], None)), {"x": X}, X.split(16)):
        PwoAPruner(network(), config(data, **without)).compress()


def cut(index: int) -> Tensor:
    """Every other image is smaller."""
    return X[index, :, index % 2 * 2 :, index % 2 * 2 :]


def unreadable() -> Any:
    raise FileNotFoundError(2, "No such file", "a.png")


REFUSED: dict[str, Any] = {
    "give a DataLoader, a Dataset, or tensors or arrays": None,
    "is a str; give a DataLoader": "images",
    r"gives a dict with keys \['picture', 'label'\]; name the images": {"picture": X, "label": Y},
    r"of which \['image', 'pixel_values'\] may be images; leave one": [{"image": X, "pixel_values": X, "y": Y}],
    r"of which \['label', 'target'\] may be labels; leave one": [{"image": X, "label": Y, "target": Y}],
    r"images are a tensor \(\d+, 8, 8, 3\) of torch.float32, channels last; give images.permute": (
        X.permute(0, 2, 3, 1), Y
    ),
    r"images are a tensor \(\d+, 8, 8\) of torch.uint8; .* unsqueeze\(1\)": (BYTES[:, 0], Y),
    "images are a tensor .* of torch.int64; give floats within pixel_range, or uint8": (BYTES.long(), Y),
    "pixels reach from .* divide them by 255": (BYTES.float(), Y),
    r"pixels reach from -1 to 1, .* scale the images": (X * 2 - 1, Y),
    "images hold NaN": (X / torch.zeros(1), Y),
    "as if divided by 255 once too often": (BYTES.clamp(max=1), Y),
    r"images have shapes \[\(3, 6, 6\), \(3, 8, 8\)\]; resize": Samples(lambda i: (cut(i), 0)),
    r"images have shapes \[\(1, 8, 8\), \(3, 8, 8\)\]; resize": [PICTURES[0].convert("L"), *PICTURES[1:]],
    r"have pixels of more than 8 bits \(mode I;16\)": ([Image.new("I;16", (8, 8))] * 2, [0, 1]),
    "24 images and 3 labels; give as many of each": (X, [0, 1, 2]),
    "labels are .* of torch.float32; give class indices": (X, Y.float()),
    "labels are .* not one-hot; give labels.argmax": (X, one_hot() * 0.5),
    "labels are one-hot over 5 classes, and the model has 4": (X, nn.functional.one_hot(Y, 5)),
    "labels reach from 1 to 4, and the model has 4 classes": [(X, (Y + 1).tolist())],
    "labels are a ndarray of other things than numbers": (X, np.array(["cat"] * N)),
    "images are a tensor without numbers or a sparse one": (X.to_sparse(), Y),
    "labels are a tensor without numbers": (X, Y.to("meta")),
    "labels are a str; give": (X, ["cat"] * N),
    r"gives no labels": [X],
    r"gives a dict with keys \['img', 'class'\]; name the labels 'label' or 'y'": {"img": X, "class": Y},
    r"gives a dict with keys \['image', 'digit'\]; name the labels": Samples(lambda i: {"image": X[i], "digit": 1}),
    r"labels are a tensor \(\d+, 1, 1\) of torch.int64; give class indices": (X, Y[:, None, None]),
    "is the class TensorDataset; give a DataLoader, a Dataset, or": TensorDataset,
    r"images are a tensor \(\d+,\) of torch.int64; give \(N, C, H, W\)": (Y, X),
    r"images are a str; give tensors": ["a.png", "b.png"],
    f"labels are 2 sets of {N} each, for {N} images; give one set": (X, (Y, Y)),
    r"sample \d+ cannot be read \(.Errno 2. No such file: 'a.png'\); mend it": Samples(lambda i: unreadable()),
    "batch 0 cannot be read .*No such file": DataLoader(Samples(lambda i: unreadable()), 16),
    "23 of 24 samples have no label|15 of 16 samples have no label": Samples(lambda i: (X[i], None if i else 1)),
    r"samples of different sizes \(\[3, 8, 8\] and \[3, 6, 6\]\) do not make a batch": DataLoader(
        Samples(lambda i: (cut(i), 0)), 16
    ),
    r"cannot stack PIL images; add ToTensor\(\)": DataLoader(Samples(lambda i: (PICTURES[i], 0)), 16),
    "a sample holds None, which": DataLoader(Samples(lambda i: (X[i], None)), 16),
    "a sample holds a object": DataLoader(Samples(lambda i: (np.array([None]), 0)), 16),
    r"images are .* \(3, 8, 8\) .* into a DataLoader": Streamed(),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_read_is_refused_alike_in_one_line(said: str) -> None:
    lines = []
    for name, door in (("train_loader", masks), ("data", verdicts)):
        with pytest.raises(ValueError, match=said) as caught:
            door(REFUSED[said])
        lines.append(str(caught.value).removeprefix(name))
    assert "\n" not in lines[0]
    if not isinstance(REFUSED[said], (Samples, list)) and "no labels" not in said:  # shuffled; why labels are needed
        pruning, judging = (line.replace("(16,", f"({N},") for line in lines)  # a batch, and all at once
        assert pruning == judging


def test_the_sample_that_cannot_be_read_is_named() -> None:
    class Together(Samples):
        """As data sets of Hugging Face, which give several at once."""

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[i] for i in indices]

    def read(index: int) -> Any:
        return (X[index], Y[index]) if index != 5 else unreadable()

    for samples in (Samples(read), Together(read)):
        with pytest.raises(ValueError, match="sample 5 cannot be read"):
            verdicts(samples)
    assert verdicts(Together(lambda i: (X[i], Y[i]))) == verdicts((X, Y))
    workers = DataLoader(Samples(read), 4, num_workers=1)
    with pytest.raises(ValueError, match=r"^data: batch 1 cannot be read \(FileNotFoundError: .*'a.png'\); mend it"):
        verdicts(workers)


def test_what_a_loader_s_collate_raised_is_kept_and_other_errors_are_the_user_s() -> None:
    with pytest.raises(ValueError, match="PIL") as caught:
        verdicts(DataLoader(Samples(lambda i: (PICTURES[i], 0)), 16))
    assert isinstance(caught.value.__cause__, TypeError)

    def fails(index: int) -> Any:
        raise RuntimeError("the user's own")

    for door in (masks, verdicts):
        with pytest.raises(RuntimeError, match="the user's own"):
            door(DataLoader(Samples(fails), 16))


def test_time_series_of_width_1_are_no_images_with_channels_last() -> None:
    series = torch.rand(2, 12, 100, 1)
    assert torch.equal(as_images(series, (0.0, 1.0), "x"), series)


def test_labels_of_every_integer_type() -> None:
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(as_labels(Y.to(kind), N, "y").classes, Y)


def test_an_evaluator_s_dicts_without_labels_are_told_by_their_keys() -> None:
    batches = [{"img": x, "class": y} for x, y in BATCHES]
    said = r"train_loader gives a dict with keys \['img', 'class'\]; name the labels 'label' or 'y'"
    evaluator = make_evaluator(model := network(), batches, lr=0.1)
    with pytest.raises(ValueError, match=said):
        PwoADistiller(model, [], evaluator, network(), eps=0.1).compress(max_steps=2)
    pruner = PwoAPruner(
        model := network(),
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}],
        make_evaluator(model, batches, lr=0.1),
        eps=0.1,
    )
    with pytest.raises(ValueError, match=said):
        pruner.compress(max_steps=2)
    evaluator = make_evaluator(model := network(), batches, lr=0.1)
    unlabelled = PwoADistiller(model, [], evaluator, network(), eps=0.1, hsic={"lambda_y": 0})
    unlabelled.compress(max_steps=2)


def test_a_nested_tensor_is_refused_as_a_sparse_one_is() -> None:
    nested = torch.nested.nested_tensor([X[0], X[1]])
    with pytest.raises(ValueError, match="x: images are a tensor without numbers or a sparse one; give a dense tensor"):
        as_images(nested, (0.0, 1.0), "x")
