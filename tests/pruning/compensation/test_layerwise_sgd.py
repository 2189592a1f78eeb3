import copy

import pytest
import torch
from torch import nn

from prunegym.pruning.calibration import unfolding
from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation import COMPENSATIONS, PlannedCut, layerwise_sgd
from prunegym.pruning.graph import find_groups
from prunegym.pruning.surgery.cutting import axis_cuts
from tests.pruning.compensation.cases import dense_inputs, masked, outputs_of_reader, run
from tests.pruning.example_networks import EXAMPLES, REPRESENTATIVES
from tests.pruning.oracles import example, random_kept


@pytest.fixture(autouse=True)
def every_position(monkeypatch):
    """What is learned is compared with the best there is on the very same data."""
    monkeypatch.setattr(unfolding, "POSITIONS_PER_IMAGE", 1000)


# layers of other kinds than those of the representatives
KINDS = ("grouped", "conv1d", "conv3d", "mlp", "tokens", "called-twice", "tied-weights", "bias-free")


@pytest.mark.parametrize("name", [*REPRESENTATIVES, *KINDS])
def test_comes_near_least_squares_and_keeps_the_mean(name):
    model, best, graph, kept, cuts, images = run(name, "least-squares")
    changed = compensated(model, graph, kept, images)
    inputs = {one.owner: one.kept for one in cuts if one.axis == "in"}
    for owner, found in dense_inputs(model, images, inputs).items():
        layer, x = model.get_submodule(owner), torch.cat(found)
        few = masked(layer, x, inputs[owner])
        dense = outputs_of_reader(model, graph, owner, x)
        outputs = [outputs_of_reader(m, graph, owner, few) for m in (changed, best, model)]
        error, least, dropped = (float((y - dense).square().mean()) for y in outputs)
        assert error <= least + 0.05 * (dropped - least) + 1e-6
        torch.testing.assert_close(outputs[0].mean(0), dense.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_leaves_what_reads_no_lost_channel_alone(name):
    model, changed, graph, _, cuts, _ = run(name, "layerwise-sgd")
    touched = {one.owner for one in cuts if one.axis == "in"}
    touched |= {graph.layers[owner].batch_norm for owner in touched}
    for key, tensor in model.state_dict().items():
        if key.rpartition(".")[0] not in touched:
            assert torch.equal(changed.state_dict()[key], tensor)


def compensated(model, graph, kept, images):
    planned = PlannedCut(
        model, graph, kept, axis_cuts(model, graph, kept), calibrate(graph, real_images(model, [images]))
    )
    changed = copy.deepcopy(model)
    COMPENSATIONS["layerwise-sgd"].apply_(changed, planned)
    return changed


def test_a_copied_channel_is_replaced_at_any_scale():
    model = nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1000.0], [0.001, 0.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 0.002, 3000.0], [5.0, -0.001, 0.0]]))
        model[2].bias.zero_()
    graph = find_groups(model, (2,))
    images = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    found = compensated(model, graph, {"0": torch.tensor([0, 1])}, images)[2].weight
    # the third input is a thousandth of the first
    expected = torch.tensor([[4.0, 0.002], [5.0, -0.001]])
    torch.testing.assert_close(found[:, :2].detach(), expected, rtol=0.01, atol=1e-4)


def test_is_the_same_however_many_layers_learn_at_once(monkeypatch):
    model, graph, images = example("padded")
    kept = random_kept(graph)
    expected = compensated(model, graph, kept, images).state_dict()
    monkeypatch.setattr(layerwise_sgd, "READERS_AT_ONCE", 2)
    found = compensated(model, graph, kept, images).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_learns_on_one_thread_and_leaves_the_setting_alone(monkeypatch):
    fit, threads = layerwise_sgd._fit, []
    monkeypatch.setattr(
        layerwise_sgd, "_fit", lambda *args: threads.append(torch.get_num_threads()) or fit(*args)
    )
    model, graph, images = example("mlp")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compensated(model, graph, random_kept(graph), images)
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_what_a_layer_learns_does_not_hang_on_the_other_cuts():
    model, graph, images = example("plain")
    kept = random_kept(graph)
    assert len(kept) == 2
    both = compensated(model, graph, kept, images)
    alone = compensated(model, graph, {"1.0": kept["1.0"]}, images)
    assert torch.equal(both[2][2].weight, alone[2][2].weight)


def test_a_row_that_its_batch_norm_silences_stays():
    model, _, images = example("plain")
    model = copy.deepcopy(model)
    model[1][1].weight.data[2] = 0
    graph = find_groups(model, tuple(images.shape[1:]))
    kept = torch.tensor([0, 3, 5])
    found = compensated(model, graph, {"0.0": kept}, images)[1][0].weight
    assert found.isfinite().all()
    assert torch.equal(found[2, kept], model[1][0].weight[2, kept])
    assert not torch.equal(found[3, kept], model[1][0].weight[3, kept])
