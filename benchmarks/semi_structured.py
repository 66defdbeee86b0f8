"""2:4 networks on torch's semi-structured kernels, beside the same weights dense: error and time, in one run.

    python -m benchmarks.semi_structured [--networks vit-b-16 resnet50] [--batch 128] [--pairs 30] [--unfold]

The weights are not trained: neither figure depends on that. Both networks answer the same images in bfloat16,
interleaved; the times are medians. An error is the largest difference from the float32 network's logits, over their
largest size. Needs timm, and a GPU of compute capability 8.0 or more: elsewhere it ends with the line that says so.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pwoa_plugin import to_semi_structured
from pwoa_plugin.errors import InputError
from pwoa_plugin.method.oneshot import prune_once
from pwoa_plugin.models import make_model

WARM_UP = 5


def vit_b_16() -> nn.Module:
    """timm's, whose attention is made of linear layers; torchvision's is `nn.MultiheadAttention`."""
    import timm

    model: nn.Module = timm.create_model("vit_base_patch16_224", pretrained=False)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit-b-16": vit_b_16,
    "resnet50": lambda: make_model("resnet50", num_classes=1000),
}


def milliseconds(model: nn.Module, x: Tensor) -> float:
    started = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return 1e3 * (time.perf_counter() - started)


@torch.inference_mode()
def compare(name: str, batch: int, pairs: int, device: str, unfold: bool) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    prune_once(model, 0.5, granularity="2:4")
    dense = copy.deepcopy(model).to(device, torch.bfloat16)
    sparse = copy.deepcopy(dense)
    try:
        report = to_semi_structured(sparse, unfold=unfold)
    except InputError as error:
        print(f"{name:10} {error}")
        return
    print(f"{name:10} {report}")
    x = torch.rand(batch, 3, 224, 224, device=device)
    wanted, narrow = model.to(device)(x), x.bfloat16()
    for kind, network in (("dense", dense), ("2:4", sparse)):
        error = ((network(narrow).float() - wanted).abs().max() / wanted.abs().max()).item()
        print(f"{name:10} {kind:6} error of the logits in bfloat16 {error:.2e}")
    for _ in range(WARM_UP):
        milliseconds(dense, narrow), milliseconds(sparse, narrow)
    times = [(milliseconds(dense, narrow), milliseconds(sparse, narrow)) for _ in range(pairs)]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(one / other for one, other in times)
    print(f"{name:10} dense {before:.2f} ms, 2:4 {after:.2f} ms, {ratio:.2f}x faster (median of {pairs} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--unfold", action="store_true", help="convert convolutions beyond 1x1, too")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.device}, batch {args.batch}")
    for name in args.networks:
        compare(name, args.batch, args.pairs, args.device, args.unfold)


if __name__ == "__main__":
    main()
