"""How much of a residual block a linear map of its input can say."""

import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.blocks import ReplacementLosses
from prunegym.pruning.calibration.statistics import _collect, calibrate, real_images
from prunegym.pruning.calibration.synthesis import SYNTHESES
from prunegym.pruning.graph import find_groups
from tests.pruning.oracles import example


def loss_of(block, inputs):
    collector = ReplacementLosses(["block"])
    with torch.no_grad():
        for x in inputs:
            collector.add("block", nn.Identity(), x, block(x))
    return collector.result()["block"]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(20, 5, 4, 4, generator=generator) + 3 for _ in range(3)]


def test_a_linear_block_loses_nothing_and_one_that_ignores_its_input_everything(inputs):
    linear = nn.Conv2d(5, 5, 1)
    assert loss_of(linear, inputs) == pytest.approx(0.0, abs=5e-3)  # the ridge
    assert loss_of(lambda x: torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), inputs) > 0.95


def test_it_is_the_residual_of_a_regression_on_all_positions(inputs):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 5, generator=generator)
    block = lambda x: x + torch.einsum("oc,nchw->nohw", weight, x).relu()  # noqa: E731
    x = torch.cat(inputs).movedim(1, 3).flatten(0, 2).double()
    y = torch.cat([block(one) for one in inputs]).movedim(1, 3).flatten(0, 2).double()
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    expected = float(residual.square().sum() / (y - y.mean(0)).square().sum())
    assert loss_of(block, inputs) == pytest.approx(expected, rel=0.05)  # the ridge


def test_a_constant_block_loses_nothing(inputs):
    assert loss_of(torch.zeros_like, inputs) == 0.0


def test_calibration_watches_blocks_through_their_inputs_and_outputs():
    model, graph, images = example("blocks")
    found = calibrate(graph, real_images(model, [images]), statistics=["blocks"])["blocks"]
    assert set(found) == {"1", "2.0", "2.1"}
    assert all(0 < loss < 1 for loss in found.values())


def test_inputs_drawn_layer_by_layer_say_nothing_of_blocks():
    model, graph, _ = example("blocks")
    inputs = SYNTHESES["layerwise"](model, graph.input_shape, seed=0, progress=False)
    assert calibrate(graph, inputs, statistics=["blocks"])["blocks"] == {}


class InPlace(nn.Module):
    """Changes its input in place before it adds to it."""

    def forward(self, x):
        branch = nn.functional.relu(x - 3.0)
        return x.mul_(0.0).add_(branch)


def test_what_a_block_has_read_is_seen_as_it_was_before_the_block_ran(inputs):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block, self.last = (
                nn.Conv2d(5, 5, 1),
                nn.Sequential(InPlace()),
                nn.Conv2d(5, 4, 1),
            )

        def forward(self, x):
            return self.last(self.block(self.first(x))).mean((2, 3))

    seen, model = [], Network().eval()

    class Watching:
        reads_outputs = True

        def wants(self, name):
            return name == "block"

        def add(self, name, module, x, y):
            seen.append((x, y))

        def result(self):
            return {}

    with torch.no_grad():
        expected = model.first(inputs[0])
        _collect(find_groups(model, (5, 4, 4)), real_images(model, inputs[:1]), [Watching()])
    ((x, y),) = seen
    assert torch.equal(x, expected)
    assert torch.equal(y, nn.functional.relu(expected - 3.0))
