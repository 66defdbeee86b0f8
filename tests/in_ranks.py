"""What tests of several processes have each of them do; see `launched`."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pwoa_plugin import PwoAConfig, PwoAGroupPruner, PwoAPruner, _ranks
from pwoa_plugin._digest import digest_of, digest_of_tensors
from pwoa_plugin.cli import main
from pwoa_plugin.data.images import InMemory
from pwoa_plugin.data.load import Loader
from pwoa_plugin.errors import InputError, PwoAError
from pwoa_plugin.method.batches import Batches
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.trainer import Trainer
from pwoa_plugin.runs.callbacks import Stopped
from pwoa_plugin.runs.prune import prune

Told = dict[str, Any]


def told(call: Callable[[], Any]) -> str:
    """What a call raises, of our own errors."""
    try:
        call()
    except PwoAError as error:
        return str(error)
    return "nothing"


# -- _ranks --------------------------------------------------------------------------------------


def ask_each_other() -> Told:
    rank = _ranks.rank()

    def fail(where: int) -> None:
        with _ranks.together():
            if rank == where:
                raise InputError("eps=9: too much")

    def main_fails() -> None:
        raise InputError(f"rank {rank} refuses")

    return {
        "ranks": _ranks.gathered((rank, _ranks.size(), _ranks.is_main())),
        "from_main": _ranks.from_main(f"of {rank}"),
        "number": _ranks.number_from_main(10 + rank),
        "tensor": _ranks.tensor_from_main(torch.full((2,), float(rank))).tolist(),
        "parts": _ranks.gathered(_ranks.own_part([1, 2, 3, 4, 5])),
        "on_main": _ranks.on_main(lambda: os.environ["RANK"]),
        "main_fails": told(lambda: _ranks.on_main(main_fails)),
        "one_fails": told(lambda: fail(1)),
        "none_fails": told(lambda: fail(5)),
        "agree": told(lambda: _ranks.agree_on({"eps": 1, "lr": rank}, "start alike")),
        "alike": told(lambda: _ranks.agree("eps", 1, "start alike")),
    }


def wait_for_the_other(folder: Path, how: str) -> None:
    """Rank 0 writes what it is told; rank 1 is silent or dies."""
    os.environ["PWOA_RANKS_TIMEOUT"] = "10"  # also for the other to start, on a busy machine
    _ranks.barrier()
    if _ranks.rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    (folder / "told").write_text(told(_ranks.barrier))


# -- training ------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network without BatchNorm, in blocks."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(norm) for _ in range(2)))
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem(x).relu(), 2)
        return self.head(self.blocks(x).flatten(1))


class WithSpare(Plain):
    """With a layer that no step uses."""

    def __init__(self) -> None:
        super().__init__(norm=True)
        self.spare = nn.Linear(2, 2)


class Block(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.two(self.norm(self.one(x)).relu())).relu()


def network(norm: bool = False) -> Plain:
    torch.manual_seed(0)
    return Plain(norm)


def images(number: int = 46) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.rand(number, 1, 8, 8, generator=random), torch.randint(3, (number,), generator=random)


def plain_config(**changed: Any) -> PwoAConfig:
    """Plain SGD with a loss that is a mean over images: any split of a batch gives the same gradient."""
    fields: dict[str, Any] = {
        "sparsity": 0.5,
        "epochs": 2,
        "batch_size": 16,
        "train_loader": images(),
        "optimizer": {"name": "sgd", "lr": 0.05},
        "perturbation": {"kind": "none"},
        "hsic": {"lambda_x": 0, "lambda_y": 0},
        "distillation": {"feature_weight": 0},  # a ratio of sums over the batch
        "progress": False,
    }
    return PwoAConfig(**fields | changed)


#: HSIC over the images of both processes, in three of the four steps.
GATHERED: dict[str, Any] = {
    "hsic": {"gather": True, "lambda_x": 0.5, "lambda_y": 0.1, "share": 0.5},
    "batch_size": 23,
    "seed": 1,
}


def pruned(config: PwoAConfig, model: nn.Module | None = None) -> Told:
    model = network() if model is None else copy.deepcopy(model)
    exact = config.perturbation.kind == "none"  # what compares with one process: no rounding hides there
    model, masks = PwoAPruner(model.double() if exact else model, config).compress()
    mask = {name: targets["weight"].bool() for name, targets in masks.items()}
    return {"weights": {n: t.detach().clone() for n, t in model.state_dict().items()}, "masks": mask}


def prune_variants() -> dict[str, Told]:
    """Runs of several kinds; a run itself asserts at every cut that all processes are equal to the bit."""
    real: dict[str, Any] = {"perturbation": {}, "hsic": {}, "distillation": {}, "eps": 0.1}
    found = {
        "plain": pruned(plain_config()),
        "accumulated": pruned(plain_config(accumulate=3)),
        "checkpointed": pruned(plain_config(checkpoint=True)),
        "admm": pruned(plain_config(admm={"epochs": 1}, **real), network(norm=True)),
        "all": pruned(plain_config(accumulate=2, checkpoint=True, autocast="bfloat16", **real), network(norm=True)),
        "gathered": pruned(plain_config(**GATHERED)),
        "searched": pruned(plain_config(perturbation={"kind": "uniform"}, hsic={}), network(norm=True)),
    }
    torch.manual_seed(0)
    spare, _ = PwoAPruner(WithSpare(), plain_config(exclude=["spare"], **real)).compress()
    found["spare"] = {"weights": spare.state_dict(), "masks": {}}
    wrapped, _ = PwoAPruner(DistributedDataParallel(network()), plain_config(**real)).compress()
    found["wrapped by the user"] = {"weights": wrapped.state_dict(), "masks": {}}
    structured = plain_config(granularity="structured", sparsity=0.5, admm={"epochs": 1}, **real)
    smaller = PwoAGroupPruner(network(norm=True), config=structured).compress()
    found["structured"] = {"weights": smaller.state_dict(), "masks": {}}
    return found


class Drawn(Callback):
    """Which terms each step has."""

    def __init__(self) -> None:
        self.steps: list[dict[str, bool]] = []

    def on_run(self, run: Trainer) -> None:
        self.loss = run.loss

    def on_step(self, status: Status) -> None:
        self.steps.append({name: bool(term) for name, term in self.loss.terms.items()})


def draw_terms() -> list[dict[str, bool]]:
    drawn, shares = Drawn(), {"hsic": {"share": 0.25}, "distillation": {"gradient_weight": 1, "feature_share": 0.25}}
    config = plain_config(perturbation={}, eps=0.1, epochs=4, **shares)
    PwoAPruner(network(norm=True), config, callbacks=[drawn]).compress()
    return drawn.steps


class Pictures(InMemory):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    @classmethod
    def arrays(cls, config: Any, *, train: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def see_all_images() -> dict[str, list[list[int]]]:
    """The images that each process sees in an epoch, by their labels, in each kind of loader."""
    x, y = torch.randint(256, (45, 1, 4, 4)).float() / 255, torch.arange(45)
    x = _ranks.tensor_from_main(x)
    data = TensorDataset(x, y)
    sources: dict[str, Any] = {
        "tensors": (x, y),
        "dataset": data,
        "shuffled": DataLoader(data, batch_size=8, shuffle=True),
        "workers": DataLoader(data, batch_size=8, shuffle=True, num_workers=2),
        "images": Loader(Pictures((x * 255).byte(), y), torch.arange(45), batch_size=8, shuffle=True),
        "list": [(x[at : at + 8], y[at : at + 8]) for at in range(0, 45, 8)],
    }
    seen = {}
    for name, source in sources.items():
        torch.manual_seed(_ranks.rank())  # each process draws otherwise, and still nothing is lost
        batches = Batches(source, batch_size=8, device=torch.device("cpu"), labels_because="it", shared=True)
        each, weight = [], 0.0
        for own, labels in batches.epoch():
            assert labels is not None
            each += labels.tolist()
            weight += batches.weight * len(own)
            torch.testing.assert_close(own, x[labels], rtol=0, atol=1 / 255)
        assert len(batches) == 6, name
        seen[name] = _ranks.gathered(each)
    return seen


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        own = range(_ranks.rank(), 30 + _ranks.rank(), 2 + _ranks.rank())  # unequal lengths
        return iter([(torch.rand(1, 8, 8), label % 3) for label in own])


class Split(Stream):
    sharded = True


def refuse_what_differs() -> Told:
    rank = _ranks.rank()

    def trained(model: nn.Module | None = None, **changed: Any) -> str:
        return told(lambda: Trainer(model or network(), plain_config(**changed)).fit())

    bad = images()
    bad[0][:, :, 0, 0] = float("nan") if rank == 1 else 0.5
    other = network()
    other.head.bias.data += 0.1 * rank
    return {
        "config": trained(eps=0.1 + 0.1 * rank),
        "network": trained(other),
        "length": trained(train_loader=images(46 + 20 * rank)),
        "stream": trained(train_loader=DataLoader(Stream(), batch_size=4), epochs=1),
        "split stream": trained(train_loader=DataLoader(Split(), batch_size=4), epochs=1),
        "batch_size": trained(batch_size=3),
        "pixels": trained(train_loader=bad),
    }


def write_pictures(root: Path, number: int = 44) -> None:
    """Image files in folders by class, and the same in .tar shards; each is of one grey, 5 times its number."""
    import webdataset

    shards = [webdataset.TarWriter(str(root / f"{shard}.tar")) for shard in range(4)]
    for at in range(number):
        ending = "jpg" if at % 2 else "png"
        file = root / "imagenet" / "train" / f"class{at % 3}" / f"{at}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (5 * at,) * 3).save(file)
        shards[at % 4].write({"__key__": str(at), ending: file.read_bytes(), "cls": at % 3})
    for shard in shards:
        shard.close()


def read_files(snippet: str) -> dict[str, Told]:
    """Images read and networks pruned, by loaders of `write_pictures`; ``snippet`` is the docs' loader of a folder."""
    import datasets
    import webdataset as wds
    from datasets.distributed import split_dataset_by_node

    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    names: dict[str, Any] = {"network": nn.Sequential(*layers)}
    exec(snippet.replace("batch_size=1024", "batch_size=8").replace("num_workers=8", "num_workers=1"), names)
    shards = wds.WebDataset("{0..3}.tar", nodesplitter=wds.split_by_node, shardshuffle=4)
    samples = shards.shuffle(16).decode("torchrgb").to_tuple("png;jpg", "cls")
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # ask nothing of the network
    streamed = datasets.load_dataset("imagefolder", data_dir="imagenet", cache_dir=".", split="train", streaming=True)
    own = split_dataset_by_node(streamed.shuffle(seed=0, buffer_size=16), _ranks.rank(), _ranks.size())
    loaders: dict[str, Any] = {
        "ImageFolder": names["loader"],
        "WebDataset": DataLoader(samples.batched(4), batch_size=None),
        "WebLoader": wds.WebLoader(samples, batch_size=4, num_workers=1).unbatched().shuffle(16).batched(4),
        "datasets": DataLoader(own.with_format("torch"), batch_size=4),
    }
    found = {}
    for name, loader in loaders.items():
        batches = Batches(loader, batch_size=8, device=torch.device("cpu"), shared=True)
        read = [round(image.mean().item() * 255 / 5) for x, _ in batches.epoch() for image in x]
        found[name] = {"read": _ranks.gathered(read)} | pruned(plain_config(train_loader=loader), names["model"])
    return found


def train(root: Path, snippet: str) -> Told:
    """All of the above, in one launch."""
    os.chdir(root)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in torchrun's own processes
    return {
        "drawn": draw_terms(),
        "runs": prune_variants(),
        "images": see_all_images(),
        "refused": refuse_what_differs(),
        "files": read_files(snippet),
    }


# -- runs in folders -----------------------------------------------------------------------------


class StopAt(Callback):
    """Sends rank 0 a signal after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, status: Status) -> None:
        if status.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def by_command(*arguments: object) -> list[tuple[int, str]]:
    """Exit status and stderr of each process's command line."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        status = main(["prune", *map(str, arguments)])
    return _ranks.gathered((status, said.getvalue()))


def run_and_resume(folder: Path, config_file: Path) -> Told:
    """A run that is not stopped, one that is stopped and resumed, and one that is stopped for others to resume."""
    commands = {
        "command": by_command(config_file, "--out", folder / "command"),
        "refused": by_command(config_file, "--out", folder / "refused", "--set", "data.root=nowhere"),
        "differs": by_command(config_file, "--out", folder / "refused", "--set", f"eps=0.{_ranks.rank() + 1}"),
        "one fails": by_command(config_file, "--out", folder / "refused", "--set", f"eps={-_ranks.rank() or 0.1}"),
    }
    logging.getLogger("pwoa_plugin").setLevel(logging.ERROR)
    config = plain_config(perturbation={}, eps=0.1, hsic={}, epochs=3, admm={"epochs": 1})

    def run(name: str, at: int | None = None, resume: bool = False) -> tuple[str, str]:
        model, happened = network(norm=True), "finished"
        validation = images(20)
        stops = [] if at is None else [StopAt(at)]
        try:
            prune(config, folder / name, model=model, validation=validation, resume=resume, callbacks=stops)
        except Stopped as stopped:
            happened = str(stopped)
        return happened, digest_of(model)

    return commands | {
        "whole": run("whole"),
        "stopped": run("stopped", at=5),
        "resumed": run("stopped", resume=True),
        "again": run("stopped", resume=True),
        "left": run("left", at=4)[0],
        "saved": _ranks.gathered(sorted(path.name for path in (folder / "left" / "states").iterdir())),
    }


def resume_alone(folder: Path) -> None:
    config = plain_config(perturbation={}, eps=0.1, hsic={}, epochs=3, admm={"epochs": 1})
    prune(config, folder / "left", model=network(norm=True), validation=images(20), resume=True, callbacks=[])


class DieAt(Callback):
    def on_step(self, status: Status) -> None:
        if status.step == 3 and _ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def lose_one(folder: Path) -> None:
    model = network()
    before = digest_of_tensors(**model.state_dict())
    said = told(lambda: PwoAPruner(model, plain_config(), callbacks=[DieAt()]).compress())
    as_before = digest_of_tensors(**model.state_dict()) == before
    (folder / "told").write_text(f"{said}; as before: {as_before}")


# -- NNI's evaluators ----------------------------------------------------------------------------


def train_by_torch_evaluator() -> Told:
    """NNI's own TorchEvaluator, whose training function wraps the model in DistributedDataParallel."""
    import nni
    from nni.compression import TorchEvaluator

    _ranks.begin()
    model, (x, y) = network(norm=True), images(64)

    def step(batch: Any, student: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(student(batch[0]), batch[1])

    def train(student: nn.Module, optimizer: Any, step: Any, scheduler: Any, steps: int | None, _: Any) -> None:
        averaged = DistributedDataParallel(student)
        for at in range(steps or 0):
            rows = slice(16 * (2 * (at % 2) + _ranks.rank()), None)
            optimizer.zero_grad()
            step((x[rows][:16], y[rows][:16]), averaged).backward()
            optimizer.step()

    evaluator = TorchEvaluator(train, nni.trace(torch.optim.SGD)(model.parameters(), lr=0.05), step)
    return _fused(model, evaluator, 6)


def train_by_transformers(folder: Path) -> Told:
    from tiny_transformers import tiny_vit, traced_trainer

    from pwoa_plugin import TransformersEvaluator

    model = tiny_vit()
    return _fused(model, TransformersEvaluator(traced_trainer(model, folder)), 3)


def _fused(model: nn.Module, evaluator: Any, per_epoch: int) -> Told:
    """Prune by an evaluator; digests of the end, and whether gradients were those of both processes."""
    entries = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}]
    pruner = PwoAPruner(model, entries, evaluator, eps=0.1, steps_per_epoch=per_epoch, progress=False)
    before = digest_of(model)
    _, masks = pruner.compress(12, None)
    pruner.unwrap_model()
    kept = {f"{name}.{target}": mask for name, found in masks.items() for target, mask in found.items()}
    weights = digest_of_tensors(**dict(model.named_parameters()))  # BatchNorm keeps statistics of its own images
    return {"weights": weights, "masks": digest_of_tensors(**kept), "trained": digest_of(model) != before}
