import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.calibration import unfolding
from prunegym.pruning.calibration.moments import FullCovariance, Moments
from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation.least_squares import output_mean, refit, shift_output_
from prunegym.pruning.graph import find_groups
from prunegym.pruning.surgery.cutting import cut
from tests.pruning.compensation.cases import dense_inputs, masked, outputs_of_reader, run
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example, relative_error

DOUBLE = torch.float64
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


@pytest.fixture(autouse=True)
def every_position(monkeypatch):
    """What holds on the data of the fit is checked on all of it."""
    monkeypatch.setattr(unfolding, "POSITIONS_PER_IMAGE", 1000)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestLeastSquares:
    def test_is_no_worse_than_dropping_on_its_own_data(self, name):
        for seed in (0, 1):
            model, changed, graph, _, cuts, images = run(name, "least-squares", seed)
            kept = {one.owner: one.kept for one in cuts if one.axis == "in"}
            for owner, found in dense_inputs(model, images, kept).items():
                x = torch.cat(found)
                few = masked(model.get_submodule(owner), x, kept[owner])
                dense = outputs_of_reader(model, graph, owner, x)
                dropped = (outputs_of_reader(model, graph, owner, few) - dense).square().mean(0)
                error = (outputs_of_reader(changed, graph, owner, few) - dense).square().mean(0)
                assert (error <= dropped + 1e-9 + 1e-4 * dense.square().mean(0)).all()

    def test_keeps_the_mean_of_every_readers_output(self, name):
        model, changed, graph, _, cuts, images = run(name, "least-squares")
        readers = {one.owner: one.kept for one in cuts if one.axis == "in"}
        readers = {
            owner: kept
            for owner, kept in readers.items()
            if not isinstance(model.get_submodule(owner), TRANSPOSED)
        }
        for owner, found in dense_inputs(model, images, readers).items():
            x = torch.cat(found)
            few = masked(model.get_submodule(owner), x, readers[owner])
            before, after = (outputs_of_reader(m, graph, owner, v) for m, v in ((model, x), (changed, few)))
            torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-4, atol=1e-4)

    def test_leaves_what_reads_no_lost_channel_alone(self, name):
        model, changed, graph, _, cuts, _ = run(name, "least-squares")
        touched = {one.owner for one in cuts if one.axis == "in"}
        touched |= {graph.layers[owner].batch_norm for owner in touched}
        for key, tensor in model.state_dict().items():
            if key.rpartition(".")[0] not in touched:
                assert torch.equal(changed.state_dict()[key], tensor)


def test_no_compensation_is_dropping():
    model, changed, graph, kept, _, images = run("plain", "none")
    assert all(torch.equal(tensor, changed.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(cut(changed, graph, kept)(images), cut(model, graph, kept)(images))


def test_the_refitted_weights_by_hand():
    # two inputs of variance 1 and 2 and covariance 0.5; the second is lost
    moments = Moments(
        torch.zeros(1, 2, dtype=DOUBLE),
        (FullCovariance(torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=DOUBLE)),),
    )
    weight = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    found = refit(weight, moments, torch.tensor([0]), ridge=0.1)  # lambda = 0.1 * (1 + 2) / 2
    change = 0.5 / (1 + 0.15)
    torch.testing.assert_close(found, torch.tensor([[3 + 4 * change, 0.0], [-2 * change, 0.0]]))


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_the_refitted_weights_by_least_squares_on_the_unfolded_input(ridge):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, (2, 3), padding=(1, 0), stride=(2, 1), dilation=(1, 2), groups=2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), layer)
    x = torch.randn(40, 3, 9, 9)
    graph = find_groups(nn.Sequential(*model, nn.Flatten(), nn.Linear(4 * 4 * 3, 2)), (3, 9, 9))
    moments = calibrate(
        restricted(graph, "2"), real_images(nn.Sequential(*model, nn.Identity()), [x])
    ).moments["2"]
    kept = torch.tensor([0, 2, 3, 5])  # of each group its first and last
    found = refit(layer.weight, moments, kept, ridge=ridge)
    inner = model[1](model[0](x)).detach()
    for group in range(2):
        columns = F.unfold(
            inner[:, 3 * group : 3 * group + 3], (2, 3), padding=(1, 0), stride=(2, 1), dilation=(1, 2)
        )
        u = columns.transpose(1, 2).reshape(-1, 18).double()
        u = u - u.mean(0)
        stays = torch.tensor([True] * 6 + [False] * 6 + [True] * 6)
        w = layer.weight[2 * group : 2 * group + 2].detach().flatten(1).double()
        penalty = (ridge * u.square().mean() * len(u)).sqrt() * torch.eye(12, dtype=DOUBLE)
        change = torch.linalg.lstsq(
            torch.cat([u[:, stays], penalty]), torch.cat([u[:, ~stays], torch.zeros(12, 6, dtype=DOUBLE)])
        ).solution
        expected = w[:, stays] + w[:, ~stays] @ change.T
        refitted = found[2 * group : 2 * group + 2].detach().flatten(1).double()
        torch.testing.assert_close(refitted[:, stays], expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(refitted[:, ~stays], torch.zeros(2, 6, dtype=DOUBLE))


def restricted(graph, reader):
    """The graph with the groups alone that `reader` reads."""
    groups = [group for group in graph.groups if reader in {member.owner for member in group.readers}]
    return replace(graph, groups=tuple(groups))


def test_a_copied_channel_is_replaced_without_loss():
    u = torch.randn(50, 1, dtype=DOUBLE)
    rows = torch.cat([u, 2 * u + 3], dim=1)
    moments = Moments(rows.mean(0)[None], (FullCovariance(rows.T.cov(correction=0)),))
    weight = torch.tensor([[1.0, 1.0]], dtype=DOUBLE)
    found = refit(weight, moments, torch.tensor([0]), ridge=1e-9)
    torch.testing.assert_close(found, torch.tensor([[3.0, 0.0]], dtype=DOUBLE))
    assert relative_error(weight, found, moments) == pytest.approx(0.0, abs=1e-8)
    shift = output_mean(weight, moments) - output_mean(found, moments)
    torch.testing.assert_close(shift, torch.tensor([3.0], dtype=DOUBLE))


def test_the_relative_error_is_the_lost_share_of_the_outputs_variance():
    rows = torch.randn(100, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    first, second = rows[:, :3], rows[:, 3:]
    covariances = tuple(FullCovariance(part.T.cov(correction=0)) for part in (first, second))
    moments = Moments(torch.stack([first.mean(0), second.mean(0)]), covariances)
    weight, changed = torch.randn(2, 4, 3, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))

    def outputs(w):
        return torch.cat([first @ w[:2, :, 0].T, second @ w[2:, :, 0].T], dim=1)

    expected = outputs(weight - changed).var(0).sum() / outputs(weight).var(0).sum()
    assert relative_error(weight, changed, moments) == pytest.approx(float(expected))
    assert relative_error(weight, weight, moments) == 0.0
    assert relative_error(weight, torch.zeros_like(weight), moments) == pytest.approx(1.0)
    assert relative_error(torch.zeros_like(weight), changed, moments) == 0.0


@pytest.mark.parametrize(
    ("name", "layer"),
    [("plain", "1.0"), ("squeeze-excite", "fc1"), ("bias-free", "1.0"), ("mlp", "2"), ("bias-free", "2.2")],
)
def test_a_shift_reaches_the_output_wherever_it_is_put(name, layer):
    model, graph, images = example(name)
    changed = copy.deepcopy(model)
    cout = graph.layers[layer].cout
    shift = torch.linspace(-1, 1, cout, dtype=DOUBLE)
    (x,) = dense_inputs(model, images, [layer])[layer]
    before = outputs_of_reader(model, graph, layer, x)
    shift_output_(changed, graph.layers[layer], shift)
    after = outputs_of_reader(changed, graph, layer, x)
    batch_norm = graph.layers[layer].batch_norm
    scale = torch.ones(cout)
    if batch_norm:
        norm = model.get_submodule(batch_norm)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        assert changed.get_submodule(layer).bias is None
    torch.testing.assert_close(
        after - before, (shift * scale.detach()).expand_as(before), rtol=1e-4, atol=1e-5
    )
