from __future__ import annotations

import itertools
import re

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig, PwoALoss, PwoAPruner
from pwoa_plugin._wrapped import NetworkWrapper, unwrapped
from pwoa_plugin.errors import InputError
from pwoa_plugin.method.hidden import check_readable, find_hidden_layers, read_hidden
from pwoa_plugin.method.trainer import Trainer
from pwoa_plugin.models import LeNet


def test_auto_on_lenet() -> None:
    assert find_hidden_layers(LeNet(), torch.rand(2, 1, 28, 28)) == ["conv2", "fc1", "fc2"]


RESNET18 = [
    "layer1.0.conv1",
    "layer1.1.conv1",
    "layer2.0.conv2",
    "layer2.1.conv2",
    "layer3.0.conv2",
    "layer3.1.conv2",
    "layer4.1.conv1",
    "fc",
]
VGG11 = [
    *("features.3", "features.6", "features.11", "features.13", "features.16", "features.18"),
    *("classifier.3", "classifier.6"),
]


def test_auto_takes_shared_inputs_once_and_eight_spread_over_the_depth() -> None:
    resnet = torchvision.models.resnet18()
    found = find_hidden_layers(resnet, torch.rand(2, 3, 32, 32))
    assert found == RESNET18
    assert not any("downsample" in name for name in found)  # it shares its input with the block's conv1


@pytest.mark.parametrize("arch", ["vgg11", "mobilenet_v2"])
def test_auto_on_torchvision(arch: str) -> None:
    model = getattr(torchvision.models, arch)(num_classes=10)
    weighted = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    found = find_hidden_layers(model, torch.rand(2, 3, 32, 32))
    assert len(found) == 8
    positions = [weighted.index(name) for name in found]
    assert positions == sorted(positions)
    assert positions[0] == 1  # the input of the second layer that runs; the first one's is the image
    assert found[-1] == weighted[-1]
    gaps = [b - a for a, b in itertools.pairwise(positions)]
    assert max(gaps) - min(gaps) <= 1
    if arch == "vgg11":
        assert found == VGG11


def test_auto_on_a_vision_transformer() -> None:
    vit = torchvision.models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32)
    # The inputs of attention's projections are not modules' inputs; those of the MLPs and the head are.
    assert find_hidden_layers(vit, torch.rand(2, 3, 32, 32)) == [
        *(f"encoder.layers.encoder_layer_{i}.mlp.{j}" for i in range(3) for j in (0, 3)),
        "heads.head",
    ]


def test_mode_and_hooks_come_back() -> None:
    model = torchvision.models.resnet18()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.named_buffers()}
    find_hidden_layers(model, torch.rand(2, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_reads_what_comes_after_functional_relu() -> None:
    model, x = LeNet(), torch.rand(3, 1, 28, 28)
    with read_hidden(model, ["conv2", "fc2"]) as seen:
        model(x)
    torch.testing.assert_close(seen["conv2"], F.max_pool2d(F.relu(model.conv1(x)), 2))
    assert seen["fc2"].min() >= 0
    assert seen["fc2"].shape == (3, 256)
    assert seen["fc2"].requires_grad


def test_hooks_come_off_when_the_body_raises() -> None:
    model = LeNet()
    with pytest.raises(RuntimeError), read_hidden(model, ["conv2"]):
        raise RuntimeError("training went wrong")
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(AttributeError), read_hidden(model, ["conv2", "nowhere"]):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(1))


def test_names_of_the_users_own() -> None:
    x = torch.rand(2, 1, 28, 28)
    assert find_hidden_layers(LeNet(), x, ["fc2", "conv2"]) == ["conv2", "fc2"]
    with pytest.raises(ValueError, match=r"no module 'fc3'; did you mean fc"):
        find_hidden_layers(LeNet(), x, ["fc3"])
    with pytest.raises(ValueError, match="unused took no tensor"):
        find_hidden_layers(Unused(), torch.rand(2, 1, 2, 2), ["unused"])
    assert find_hidden_layers(Unused(), torch.rand(2, 1, 2, 2)) == []


def test_names_inside_what_is_around_a_network(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    class Outer(NetworkWrapper):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    around = nn.DataParallel(Outer(trained))
    assert unwrapped(around) is trained
    assert find_hidden_layers(around, images[0][:2]) == find_hidden_layers(trained, images[0][:2])
    with read_hidden(around, ["fc2"]) as seen:
        around(images[0][:4])
    assert seen["fc2"].shape == (4, 16)


def test_what_hooks_do_not_see_is_refused(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    check_readable(nn.DataParallel(trained))
    compiled = torch.compile(trained, backend="eager")
    with pytest.raises(ValueError, match="a part of the model is compiled"):
        check_readable(nn.Sequential(compiled))
    said = r"a part of the model is compiled, .*; give the module that went into torch.compile \(its _orig_mod\)"
    loss = PwoALoss(trained, eps=0.1)
    for call in (
        lambda: check_readable(compiled),
        lambda: loss(nn.Sequential(compiled), *images),
        lambda: PwoAPruner(nn.Sequential(compiled), PwoAConfig(sparsity=0.5, train_loader=images)),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    spread = nn.DataParallel(trained)
    spread.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"in DataParallel over 2 devices, .*; use DistributedDataParallel"):
        loss(spread, *images)


# -- which dimension is the batch ------------------------------------------------------------------------------


class Flipped(nn.Module):
    """Averages over an image and its mirror image, always or only in one mode; both go through in one batch."""

    def __init__(self, training: bool | None = None) -> None:
        super().__init__()
        self.first, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(144, 16), nn.Linear(16, 10)
        self.only = training

    def forward(self, x: Tensor) -> Tensor:
        both = self.only in (None, self.training)
        h = self.first(torch.cat([x, x.flip(3)]) if both else x).relu().flatten(1)
        out = self.fc2(self.fc1(h).relu())
        return sum(out.chunk(2)) if both else out


class SequenceFirst(nn.Module):
    """Eight tokens, one a row of pixels: ``(8, N, 16)`` inside, ``(N, 16)`` at the head."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 10)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        tokens = 1 if self.block.self_attn.batch_first else 0
        return self.head(self.block(self.embed(x[:, 0] if tokens else x[:, 0].transpose(0, 1))).mean(tokens))


class Windows(nn.Module):
    """Four windows of an image folded into the batch, between layers that see the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inside = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.after, self.head = nn.Conv2d(4, 4, 3), nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        windows = torch.cat([part for half in h.chunk(2, 2) for part in half.chunk(2, 3)])
        a, b, c, d = self.inside(windows).relu().chunk(4)
        whole = torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)
        return self.head(self.after(whole).relu().flatten(1))


class Shared(nn.Module):
    """One layer runs on tokens and on the image's mean: of its two inputs, the last has the batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x[:, 0].transpose(0, 1))
        return self.head(self.shared(self.shared(tokens).mean(0)))


class Pairs(nn.Module):
    """Takes even batches only, folded by two in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.folded, self.head = nn.Linear(64, 16), nn.Linear(32, 32), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1)).relu()
        return self.head(self.folded(h.view(len(x) // 2, 32)).view(len(x), 16))


class Gated(nn.Module):
    """A gate made of a parameter: its input ``(1, 4)`` has nothing to do with the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(64, 16), nn.Linear(4, 16), nn.Linear(16, 10)
        self.code = nn.Parameter(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.flatten(1)) * self.gate(self.code).sigmoid())


class Looked(nn.Module):
    """Looks up grey levels in an embedding, whose input is of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table, self.head = nn.Linear(64, 16), nn.Embedding(4, 4), nn.Linear(16 + 256, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.head(torch.cat([self.first(flat), self.table((3 * flat).long()).flatten(1)], 1))


# A network, its hidden layers by `auto`, those left out, and how the first one's input is described.
FOLDED: list[tuple[nn.Module, list[str], list[str], str]] = [
    (Flipped(), [], ["fc1", "fc2"], r"fc1 \(\(4, 144\) for 2 images\)"),
    (SequenceFirst(), ["head"], ["block.linear1", "block.linear2"], r"block.linear1 \(\(8, 2, 16\) for 2 images\)"),
    (Windows(), ["after", "head"], ["inside"], r"inside \(\(8, 4, 4, 4\) for 2 images\)"),
    (Shared(), ["head"], ["shared"], r"shared \(\(8, 2, 8\) for 2 images\)"),
    (Pairs(), ["head"], ["folded"], r"folded \(\(1, 32\) for 2 images\)"),
    (Gated(), ["head"], ["gate"], r"gate \(\(1, 4\) for 2 images\)"),
    (Looked(), ["head"], ["table"], r"table \(int64\)"),
]


@pytest.mark.parametrize(
    ("model", "found", "left_out", "said"), FOLDED, ids=[type(model).__name__ for model, *_ in FOLDED]
)
def test_layers_without_the_batch_first(
    model: nn.Module, found: list[str], left_out: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    assert find_hidden_layers(model, x[:2]) == found
    weighted = [name for name in left_out if not isinstance(model.get_submodule(name), nn.Embedding)]
    if weighted:
        assert re.search(rf"'auto' leaves out {len(weighted)} of .* do not have the batch first: {said}", caplog.text)
    refused = f"hsic.layers: a hidden layer's input is floats with the batch as first dimension, unlike {said}"
    with pytest.raises(InputError, match=refused) as caught:
        find_hidden_layers(model, x[:2], [*left_out, *found])
    assert "; name other layers" in str(caught.value)
    # 8 images in a batch are as many as tokens: the wrong axis would be trained on without a word.
    fields = {"train_loader": (x, y), "batch_size": 8, "epochs": 1, "eps": 0.1, "progress": False}
    trainer = Trainer(model, PwoAConfig(sparsity=0.5, **fields))
    trainer.fit()
    assert trainer.hidden_layers == found
    assert ("hsic_y" in trainer.history[-1]) == bool(found)
    with pytest.raises(InputError, match=refused):
        PwoALoss(model, eps=0.1, hsic={"layers": tuple(left_out)})(model, x[:8], y[:8])


def test_tokens_of_as_many_as_the_first_batch(caplog: pytest.LogCaptureFixture) -> None:
    class TwoTokens(SequenceFirst):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, :2])

    assert find_hidden_layers(TwoTokens(), torch.rand(2, 1, 8, 8)) == ["head"]
    assert "block.linear1 ((2, 3, 16) for 3 images)" in caplog.text


def test_batch_first_and_even_batches_are_fine(caplog: pytest.LogCaptureFixture) -> None:
    assert find_hidden_layers(SequenceFirst(batch_first=True), torch.rand(1, 1, 8, 8)) == [
        *("block.linear1", "block.linear2", "head"),
    ]
    assert not caplog.records


def test_a_network_of_batches_of_two_alone_is_refused() -> None:
    class OfTwo(Unused):
        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.reshape(2, 4))

    with pytest.raises(InputError, match=r"the model takes 2 images, but not 3 or 4 \(RuntimeError: .*of any size$"):
        find_hidden_layers(OfTwo(), torch.rand(2, 1, 2, 2))


def test_looking_leaves_the_random_state() -> None:
    class Noisy(Unused):
        def forward(self, x: Tensor) -> Tensor:
            return self.unused(F.dropout(self.used(x.flatten(1)).repeat(1, 2)))

    model = Noisy()
    before = torch.get_rng_state()
    assert find_hidden_layers(model, torch.ones(2, 1, 2, 2)) == ["unused"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_called_with_a_keyword() -> None:
    class ByKeyword(Unused):
        def forward(self, x: Tensor) -> Tensor:
            return self.unused(input=self.used(x.flatten(1)).repeat(1, 2))

    assert find_hidden_layers(ByKeyword(), torch.rand(2, 1, 2, 2)) == ["unused"]


def test_folded_in_training_mode_only(caplog: pytest.LogCaptureFixture) -> None:
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    fields = {"train_loader": (x, y), "batch_size": 8, "epochs": 2, "eps": 0.1, "progress": False, "sparsity": 0.5}
    trainer = Trainer(Flipped(training=True), PwoAConfig(**fields))
    trainer.fit()
    said = "hidden layers are left out of a step's loss, in training mode: fc1 ((16, 144) for 8 images), fc2 ("
    assert caplog.text.count(said) == 1
    assert not {"hsic_x", "hsic_y", "features"} & set(trainer.history[-1])
    model = Flipped(training=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refused = r"^hsic.layers, in training mode: a hidden layer's input is .* unlike fc2 \(\(16, 16\) for 8 images\)"
    with pytest.raises(InputError, match=refused):
        Trainer(model, PwoAConfig(**fields, hsic={"layers": "fc2"})).fit()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_layer_that_runs_in_eval_mode_only(caplog: pytest.LogCaptureFixture) -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.skipped, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x.flatten(1))
            return self.head(h if self.training else h + self.skipped(h))

    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    config = PwoAConfig(
        sparsity=0.5, train_loader=(x, y), batch_size=8, epochs=2, eps=0.1, progress=False, gradual={"epochs": 0}
    )
    trainer = Trainer(Skipping(), config)
    trainer.fit()
    assert caplog.text.count("in training mode: skipped (which did not run)") == 1
    assert {"hsic_x", "hsic_y", "features"} <= set(trainer.history[-1])
