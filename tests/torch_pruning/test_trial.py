"""A removal is checked, and undone where the smaller model is not what it must be."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from pruned_networks import assert_refused, assert_untouched, state_of, widths
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.torch_pruning import PwoAGroupPruner

Zeroed = Callable[..., nn.Module]


class Between(nn.Module):
    """An operation between two convolutions."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(128, 3)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.next(self.operation(self.conv(x))).flatten(1))


class TestTrial:
    def test_removal_is_exact_after_zeroing(self, small: nn.Module, x: Tensor, zeroed: Zeroed) -> None:
        dense = copy.deepcopy(small)
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5)
        pruner.step()
        assert torch.allclose(zeroed(dense, pruner, x)(x), small.eval()(x), atol=1e-6)

    def test_sizes_in_the_code(self, small: nn.Module, x: Tensor) -> None:
        class Hard(nn.Module):
            def __init__(self, by: int) -> None:
                super().__init__()
                self.conv, self.fc, self.by = nn.Conv2d(1, 8, 3), nn.Linear(288, 3), by

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.conv(x).view(-1, self.by))

        assert_refused("with fewer channels .* fails .*sizes are written in the code", Hard(288), x[:1])
        assert_refused("with fewer channels .*sizes are written in the code", Hard(288), x)

        def adapt(model: nn.Module) -> None:
            model.by = model.fc.in_features

        model = Hard(288)
        PwoAGroupPruner(model, x, adapt=adapt).step()
        assert model(x).shape == (4, 3)

    @pytest.mark.parametrize(
        ("operation", "match"),
        [
            (lambda x: x.flip(1), "the code shuffles channels"),
            (lambda x: F.group_norm(x, 2), "or computes with all of them together in a function"),
            (lambda x: F.layer_norm(x, (8, 6, 6)), "with fewer channels .* fails .*F.layer_norm"),
            (lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8)), "with fewer channels .* fails .*F.layer_norm"),
        ],
    )
    def test_operations_across_channels(self, x: Tensor, operation: Callable[[Tensor], Tensor], match: str) -> None:
        assert_refused(f"^conv: .*{match}.*or list conv in ignored_layers$", Between(operation), x)
        PwoAGroupPruner(Between(operation), x, ignored_layers="conv").step()

    @pytest.mark.parametrize(
        ("interactive", "at", "error"),
        [
            (False, 2, ValueError),
            (False, 2, KeyboardInterrupt),
            (True, 2, ValueError),
            (True, 3, ValueError),
            (True, 3, KeyboardInterrupt),
        ],
    )
    def test_a_failing_step_leaves_the_model(
        self, small: nn.Module, x: Tensor, at: int, error: type[BaseException], interactive: bool
    ) -> None:
        """At the removal; interactively, when all groups are tried out, and at a group's own removal."""
        calls: list[nn.Module] = []
        small.sizes = [8]

        def adapt(model: nn.Module) -> None:
            calls.append(model)
            if len(calls) == at:
                model.fc2 = nn.Linear(1, 1)
                model.sizes[0] = 4
                raise error

        pruner = PwoAGroupPruner(small, x, iterative_steps=2, adapt=adapt)
        pruner.update_regularizer()
        before, admm = state_of(small), pruner.target.admm
        with pytest.raises(error):
            [group.prune() for group in pruner.step(interactive) or ()]
        assert_untouched(small, before)
        assert small.sizes == [8]
        assert pruner.current_step == (interactive and at == 3)
        assert not pruner.removals
        assert not pruner.student_channels
        assert pruner.target.admm is (None if interactive and at == 3 else admm)  # that step is taken
        pruner.step()
        assert widths(small)["conv3"] == (6 if interactive and at == 3 else 9)

    def test_taking_out_other_channels_is_undone(
        self, small: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As of a Torch-Pruning that removes something else at the second look."""
        pruner = PwoAGroupPruner(small, x)
        before = state_of(small)
        graph, look = pruner.DG, pruner.DG.get_pruning_group
        monkeypatch.setattr(graph, "get_pruning_group", lambda m, fn, idxs: look(m, fn, [i ^ 1 for i in idxs]))
        with pytest.raises(ValueError, match="Torch-Pruning removes other channels than the projection has at 0"):
            pruner.step()
        assert_untouched(small, before)
        pruner.step()
        assert small(x).shape == (4, 3)


def test_a_model_that_is_random_in_eval_mode(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = Between(lambda y: y + 0.3 * torch.randn_like(y))
    PwoAGroupPruner(model, x).step()
    assert widths(model) == {"conv": 4, "next": 4, "fc": 3}
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "the model is random in eval mode" in said[0]
