"""What a network costs to store and to run, before and after: parameters, MACs, bytes of a file, latency."""

from __future__ import annotations

import logging
import statistics
import time

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .._checked import Amount, Measure, Record
from .._text import one_line
from .._wrapped import deep_copy

_logger = logging.getLogger(__name__)

_BATCHES = (1, 128)
_LEAST_PAIRS, _MOST_PAIRS, _SECONDS = 3, 51, 1.0  # for each size of batch


class NetworkCost(Record):
    """One network; latencies are medians by batch size, None where the batch could not be run."""

    parameters: Amount
    macs: Amount  # of one image, as Torch-Pruning counts them
    file_bytes: Amount  # as safetensors
    latency_ms: dict[str, Measure | None]


class CostReport(Record):
    """Before and after; ``speedup`` is the median ratio of paired runs by batch size."""

    dense: NetworkCost
    pruned: NetworkCost
    speedup: dict[str, Measure | None]
    device: str
    threads: Amount


def cost_report(dense: nn.Module, pruned: nn.Module, image: Tensor) -> CostReport:
    """What two networks on one device cost for an image ``(1, C, H, W)``.

    Copies run in turn, in eval mode with contiguous weights, so that the machine's load meets both alike. A batch that
    cannot be run (out of memory, say) is logged and has no latency.
    """
    import torch_pruning as tp  # not at the top: reports are read without it

    dense, pruned = (deep_copy(model).eval().to(memory_format=torch.contiguous_format) for model in (dense, pruned))
    latency: dict[str, tuple[float | None, ...]] = {}
    for batch in _BATCHES:
        try:
            latency[str(batch)] = _latency(dense, pruned, image.repeat(batch, *[1] * (image.dim() - 1)))
        except (RuntimeError, MemoryError) as error:  # must not lose a trained network
            _logger.warning("latency of batch %d is left out: %s", batch, one_line(error)[:200] or "no memory")
            latency[str(batch)] = (None, None, None)
    costs = [
        NetworkCost(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=int(tp.utils.count_ops_and_params(model, image)[0]),
            file_bytes=len(save({name: t.detach().cpu().clone() for name, t in model.state_dict().items()})),
            latency_ms={batch: times[i] for batch, times in latency.items()},
        )
        for i, model in enumerate((dense, pruned))
    ]
    return CostReport(
        dense=costs[0],
        pruned=costs[1],
        speedup={batch: times[2] for batch, times in latency.items()},
        device=str(image.device),
        threads=torch.get_num_threads(),
    )


@torch.no_grad()
def _latency(dense: nn.Module, pruned: nn.Module, images: Tensor) -> tuple[float, float, float]:
    """Median latencies in ms of both networks, and the median ratio of the pairs."""

    def run(model: nn.Module) -> float:
        started = time.perf_counter()
        model(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return 1000 * (time.perf_counter() - started)

    run(dense)
    run(pruned)
    pairs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(pairs) < _LEAST_PAIRS or (len(pairs) < _MOST_PAIRS and time.perf_counter() - began < _SECONDS):
        pairs.append((run(dense), run(pruned)))
    one, other = zip(*pairs, strict=True)
    ratios = [before / after for before, after in pairs]
    return statistics.median(one), statistics.median(other), statistics.median(ratios)
