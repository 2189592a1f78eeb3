import copy

import pytest
import torch
from torch import nn

from prunegym.pruning.data import Images
from prunegym.pruning.errors import DataError, PruningError, UnknownNameError
from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, attach_gates_, gates_of
from prunegym.pruning.training import batch_norms
from prunegym.pruning.training.batch_norms import check_statistics, reestimate_
from tests.pruning.oracles import snapshot


def images_of(count=30):
    pixels = torch.randn(count, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    return Images(3 + 2 * pixels, torch.zeros(count).long())


def chain():
    """Two BatchNorms in turn, with statistics that fit nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5)),
        )
    for module in model:
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.fill_(7)
            module.running_var.fill_(0.1)
            module.weight.data.uniform_(0.5, 2)
    return model.eval()


def layer_by_layer(model, x):
    """What each BatchNorm reads of all images at once: its mean and its unbiased variance, by channel."""
    for module in model:
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            values = x.transpose(0, 1).flatten(1)
            yield values.mean(1), values.var(1)
            scale = (module.weight / (values.var(1, unbiased=False) + module.eps).sqrt()).view(
                1, -1, *[1] * (x.dim() - 2)
            )
            x = (x - values.mean(1).view_as(scale)) * scale + module.bias.view_as(scale)
        else:
            x = module(x)


@torch.no_grad()
def test_each_layer_gets_the_mean_and_variance_of_all_images_after_those_before_it():
    model, images = chain(), images_of()
    expected = list(layer_by_layer(copy.deepcopy(model), images.images))
    reestimate_(model, images)
    found = [(one.running_mean, one.running_var) for one in batch_norms.batch_norms_of(model)]
    assert len(found) == 3
    for (mean, variance), (expected_mean, expected_variance) in zip(found, expected, strict=True):
        torch.testing.assert_close(mean, expected_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance, expected_variance, rtol=1e-4, atol=1e-5)


def test_batches_of_any_size_count_by_their_images(monkeypatch):
    monkeypatch.setattr(batch_norms, "BATCH_SIZE", 7)
    model, images = chain(), images_of()
    reestimate_(model, images)
    with torch.no_grad():
        values = model[0](images.images).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(model[1].running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), values.var(1), rtol=1e-5, atol=1e-6)


def test_nothing_else_changes_and_no_hook_stays():
    model, images = chain(), images_of()
    before = snapshot(model)
    reestimate_(model, images)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var"}
    assert not model.training
    again = snapshot(model)
    with torch.no_grad():
        model(images.images)
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_gate_decides_while_it_is_observed():
    """The gate lets one of two channels through; the other reaches its BatchNorm as zero."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))
    site = GateSite(group="0", writer="0", inputs=2, units=2, executed=1, outputs={}, readers={"1": (0, 1)})
    attach_gates_(model, RuntimeGates((site,)))
    with torch.no_grad():
        for layer in (model[0], model[1]):
            layer.weight.copy_(torch.eye(2)[..., None, None])
        gates_of(model).gate_for("0").bias.copy_(torch.tensor([1.0, 0.0]))
    images = images_of()
    reestimate_(model.eval(), images)
    first = images.images[:, 0]
    expected_mean, expected_variance = torch.stack([first.mean(), torch.zeros(())]), first.var()
    torch.testing.assert_close(model[2].running_mean, expected_mean)
    torch.testing.assert_close(model[2].running_var, torch.stack([expected_variance, torch.zeros(())]))


class Auxiliary(nn.Module):
    """A branch that runs in training only."""

    def __init__(self):
        super().__init__()
        self.main, self.side = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.main(x) + self.side(x) if self.training else self.main(x)


def test_a_batch_norm_that_reads_nothing_keeps_its_statistics():
    model = Auxiliary().train()
    reestimate_(model, images_of())
    assert model.training
    assert model.side.running_mean.tolist() == [0, 0]
    assert model.side.running_var.tolist() == [1, 1]
    assert model.main.running_mean.min() > 2


def test_what_is_not_finite_is_refused():
    images = images_of()
    images.images[3, 1, 0, 0] = float("nan")
    with pytest.raises(PruningError, match="what a BatchNorm reads is NaN or infinite"):
        reestimate_(chain(), images)
    with pytest.raises(DataError, match="there is no image to estimate statistics from"):
        reestimate_(chain(), images_of(0))


def test_a_network_without_statistics_to_change_is_refused():
    bare = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))
    check_statistics(bare, "kept")
    for statistics in ("reestimated", "trained"):
        with pytest.raises(PruningError, match=f"no BatchNorm whose statistics could be {statistics}"):
            check_statistics(bare, statistics)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'trained'\?"):
        check_statistics(chain(), "train")
