"""timm's and torchvision's image classifiers, pruned by default and judged: the table of docs/networks.md.

    python -m benchmarks.networks              # all
    python -m benchmarks.networks swin xcit    # some kinds

Random weights, ten classes, the smallest variant of a kind, a few small images: this tries that a network can be
pruned, not how well.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pwoa_plugin import PwoAConfig, PwoAPruner, evaluate
from pwoa_plugin._random import seeded
from pwoa_plugin.method.hidden import find_hidden_layers

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """One classifier: its kind, its name in its library, the size of its images, and options of its making."""

    kind: str
    name: str
    size: int
    library: str = "timm"
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        """The network with random weights, in eval mode."""
        with seeded(0):
            if self.library == "timm":
                import timm

                model = timm.create_model(self.name, pretrained=False, num_classes=CLASSES, **self.options)
            else:
                import torchvision

                model = torchvision.models.get_model(self.name, weights=None, num_classes=CLASSES, **self.options)
        return model.eval()


def _sized(size: int, **more: Any) -> dict[str, Any]:
    return {"img_size": size, **more}


NETWORKS = (
    Network("convnext", "convnext_atto", 32),
    Network("efficientnet", "efficientnet_b0", 32),
    Network("resnetv2", "resnetv2_50", 32),
    Network("mobilevit", "mobilevit_xxs", 64),
    Network("mvitv2", "mvitv2_tiny", 64, options=_sized(64)),
    Network("xcit", "xcit_nano_12_p16_224", 32, options=_sized(32)),
    Network("swin", "swin_tiny_patch4_window7_224", 64, options=_sized(64, window_size=2)),
    Network("vit", "vit_tiny_patch16_224", 32, options=_sized(32)),
    Network("deit", "deit_tiny_distilled_patch16_224", 32, options=_sized(32)),
    Network("regnet", "regnetx_002", 32),
    Network("ghostnet", "ghostnet_050", 32),
    Network("maxvit", "maxvit_pico_rw_256", 64, options=_sized(64)),
    Network("mobilenetv3", "mobilenet_v3_small", 32, "torchvision"),
    Network("densenet", "densenet121", 32, "torchvision"),
    Network("googlenet", "googlenet", 64, "torchvision", {"init_weights": False}),
    Network("inception", "inception_v3", 80, "torchvision", {"init_weights": False, "aux_logits": False}),
    Network("shufflenet", "shufflenet_v2_x0_5", 32, "torchvision"),
    Network("squeezenet", "squeezenet1_1", 32, "torchvision"),
    Network("swin", "swin_t", 32, "torchvision"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a network: its hidden layers, the share of zeros and FGSM accuracy; or why it was refused."""

    hidden: int = 0
    sparsity: float = 0.0
    judged: float = 0.0
    refused: str = ""


def prune_and_judge(network: Network, images: int = 6) -> Outcome:
    """Prune by default for two epochs of a few random images, and attack by FGSM."""
    model = network.make()
    with seeded(0):
        x, y = torch.rand(images, 3, network.size, network.size), torch.arange(images) % CLASSES
    config = PwoAConfig(sparsity=0.5, train_loader=(x, y), epochs=2, batch_size=3, eps=8 / 255, progress=False)
    try:
        hidden = find_hidden_layers(model, x)
        pruned, masks = PwoAPruner(model, config).compress()
        report = evaluate(pruned, (x[:2], y[:2]), eps=8 / 255, attacks="FGSM", progress=False)
    except ValueError as error:
        return Outcome(refused=str(error))
    kept = [mask for of_layer in masks.values() for mask in of_layer.values()]
    zeros = 1 - sum(int(mask.sum()) for mask in kept) / sum(mask.numel() for mask in kept)
    return Outcome(len(hidden), zeros, report.attacks["FGSM"].accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="default: all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print("| network | name | library | image size | hidden layers | pruned | judged |\n" + "| --- " * 7 + "|")
    for network in NETWORKS:
        if args.kinds and network.kind not in args.kinds:
            continue
        outcome = prune_and_judge(network)
        result = f"{outcome.hidden} | {100 * outcome.sparsity:.0f} % | yes" if not outcome.refused else outcome.refused
        print(f"| {network.kind} | `{network.name}` | {network.library} | {network.size} | {result} |", flush=True)


if __name__ == "__main__":
    main()
