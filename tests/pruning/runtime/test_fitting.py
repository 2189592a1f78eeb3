import copy

import pytest
import torch

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.runtime.fitting import cut_gates, fit_gates_, gate_site
from prunegym.pruning.runtime.gates import RuntimeGates, as_key, attach_gates_
from prunegym.pruning.surgery.cutting import axis_cuts
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def fitted(name, group, executed, *, kept=None, images=None):
    """(gates of one group, full-size, fitted; calibration)"""
    model, graph, few = example(name)
    kept = {} if kept is None else kept
    calibration = calibrate(graph, real_images(model, [few if images is None else images]))
    gates = RuntimeGates((gate_site(model, graph.group(group), executed),))
    gated = copy.deepcopy(model)
    attach_gates_(gated, gates)
    fit_gates_(gated, gates, kept, axis_cuts(model, graph, kept), calibration)
    return gates, calibration


def test_places_after_a_cut_by_hand():
    model, graph, _ = example("concat")
    kept = {"a.0": torch.tensor([0, 2, 3]), "b.0": torch.tensor([1, 2, 5])}
    gates, _ = fitted("concat", "b.0", 2, kept=kept)
    (site,) = cut_gates(gates, kept, axis_cuts(model, graph, kept)).sites
    assert site.readers["c.0"] == (-1, -1, -1, 0, 1, 2)
    assert [unit for unit in site.readers["head.2"] if unit >= 0] == [0, 1, 2]
    assert site.outputs["b.0"] == (0, 1, 2)
    assert (site.inputs, site.units, site.executed, site.writer) == (3, 3, 2, "b.0")


@pytest.mark.parametrize(
    ("name", "group"),
    [("grouped", "stem.0"), ("plain", "1.0"), ("transposed", "down.0"), ("tokens", "conv.0")],
)
def test_a_gate_predicts_what_its_units_send_to_their_readers(name, group):
    model, graph, _ = example(name)
    images = EXAMPLES[name].images(12)
    member = graph.group(group).readers[0]
    reader, seen = model.get_submodule(member.owner), []
    handle = reader.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    handle.remove()
    x = seen[0] if not isinstance(reader, torch.nn.Linear) or seen[0].dim() == 2 else seen[0].movedim(-1, 1)
    strength = x.flatten(2).square().mean(2).sqrt() if x.dim() > 2 else x.abs()
    norms = torch.stack([input_norm(reader, channel) for channel in range(x.size(1))])
    importance = torch.stack([(strength * norms)[:, list(unit)].sum(1) for unit in member.channels], dim=1)
    importance = importance / importance.std()
    gates, calibration = fitted(name, group, 1, images=images)
    predicted = gates.gate_for(group).scores(calibration.pooled[graph.group(group).layers[0]])
    torch.testing.assert_close(predicted.mean(0), importance.mean(0), rtol=1e-3, atol=1e-3)
    residual = (predicted - importance).square().mean()
    assert residual < importance.var(0, correction=0).mean()  # it says more than the mean does


def input_norm(layer, channel):
    """The norm of all weights that look at an input channel."""
    weight = layer.weight.detach()
    if getattr(layer, "transposed", False):
        return weight[channel].norm()
    per_group = weight.size(1)
    rows = weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    return rows[channel // per_group, :, channel % per_group].norm()


def test_a_fill_is_the_mean_of_a_channel_where_it_is_skipped():
    model, graph, _ = example("plain")
    images = EXAMPLES["plain"].images(12)
    gates, _ = fitted("plain", "0.0", 3, images=images)
    gate, reader = gates.gate_for("0.0"), graph.group("0.0").readers[0].owner
    seen = []
    handle = model.get_submodule(reader).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    handle.remove()
    skipped_somewhere = 0
    for channel, mask in enumerate(gate.mask.T):
        if (mask == 0).any():
            skipped_somewhere += 1
            expected = seen[0][mask == 0, channel].mean()
            torch.testing.assert_close(gate.fill[as_key(reader)][channel], expected)
    assert skipped_somewhere >= 3


def test_units_that_the_cut_removes_never_run_and_their_gate_reads_no_input_that_it_removes():
    kept = {"0.0": torch.tensor([0, 3, 4]), "1.0": torch.tensor([1, 2, 6, 7])}
    gates, _ = fitted("plain", "1.0", 2, kept=kept)
    gate = gates.gate_for("1.0")
    assert gate.mask[:, [0, 3, 4, 5]].sum() == 0
    assert torch.equal(gate.weight[:, [1, 2, 5]], torch.zeros(8, 3))
    assert gate.weight[[1, 2, 6, 7]][:, [0, 3, 4]].all()
