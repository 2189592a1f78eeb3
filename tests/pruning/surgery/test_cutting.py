import copy
import json

import pytest
import torch
from torch import nn

from prunegym.pruning.errors import PruningError
from prunegym.pruning.graph import find_groups
from prunegym.pruning.surgery.cutting import AxisCut, Structure, axis_cuts, bare_tensor, cut, cut_, rebuild_
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import assert_untouched, example, random_kept, silenced_output, snapshot


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_cutting_channels_equals_silencing_them(name, seed):
    model, graph, images = example(name)
    kept = random_kept(graph, seed)
    expected = silenced_output(model, graph, kept, images)
    with torch.no_grad():
        torch.testing.assert_close(cut(model, graph, kept)(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryCut:
    def test_to_one_unit_each_equals_silencing(self, name):
        model, graph, images = example(name)
        kept = {group.name: torch.tensor([group.units - 1]) for group in graph.prunable}
        expected = silenced_output(model, graph, kept, images)
        with torch.no_grad():
            torch.testing.assert_close(cut(model, graph, kept)(images), expected, rtol=1e-4, atol=1e-4)

    def test_of_nothing_is_the_identity(self, name):
        model, graph, images = example(name)
        for kept in ({}, {group.name: torch.arange(group.units) for group in graph.prunable}):
            same, structure = cut_(copy.deepcopy(model), graph, kept)
            assert structure == Structure()
            assert type(same) is type(model)
            assert all(
                torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items()
            )
            with torch.no_grad():
                assert torch.equal(same(images), model(images))

    def test_leaves_the_input_model_alone(self, name):
        model, graph, _ = example(name)
        before = snapshot(model)
        cut(model, graph, random_kept(graph))
        assert_untouched(model, before)

    def test_keeps_names_and_what_is_trained(self, name):
        model, graph, _ = example(name)
        model = copy.deepcopy(model)
        first = next(iter(model.parameters()))
        first.requires_grad_(False)
        small = cut(model, graph, random_kept(graph))
        assert set(small.state_dict()) == set(model.state_dict())
        small_parameters = dict(small.named_parameters())
        for key, parameter in model.named_parameters():
            assert small_parameters[key].requires_grad == parameter.requires_grad
        assert {key for key, _ in small.named_buffers()} == {key for key, _ in model.named_buffers()}

    def test_is_rebuilt_on_a_fresh_model(self, name):
        model, graph, images = example(name)
        small, structure = cut_(copy.deepcopy(model), graph, random_kept(graph))
        recorded = Structure.from_dict(json.loads(json.dumps(structure.to_dict())))
        assert recorded == structure
        fresh = EXAMPLES[name].model(seed=7)
        needed = find_groups(fresh, EXAMPLES[name].input_shape) if structure.form == "graph" else None
        again = rebuild_(fresh, needed, recorded)
        again.load_state_dict(small.state_dict(), strict=True)
        with torch.no_grad():
            assert torch.equal(again.eval()(images), small(images))

    def test_may_be_cut_again(self, name):
        model, graph, images = example(name)
        small = cut(model, graph, random_kept(graph, seed=3))
        graph = find_groups(small, graph.input_shape)
        kept = random_kept(graph, seed=4)
        expected = silenced_output(small, graph, kept, images)
        with torch.no_grad():
            torch.testing.assert_close(cut(small, graph, kept)(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "group", "form"),
    [
        ("plain", "0.0", "module"),
        ("shuffled", "b.0", "module"),  # its sizes follow the tensor's
        ("chunk-joined", "conv.0", "module"),  # two equal halves of what is left
        ("shuffled-constants", "a.0", "module"),
        ("shuffled-constants", "b.0", "graph"),
        ("view-constant", "conv.0", "graph"),
        ("view-constant", "hidden", "module"),
        ("padded", "layer1.0.conv1", "module"),
        ("padded", "conv1", "module"),  # as much is padded as before
        ("padded", "layer2.0.conv2", "graph"),
        ("chunk-apart", "conv.0", "graph"),
        ("slices", "conv.0#1", "module"),  # x[:, 5:] runs to wherever the end is
        ("slices", "conv.0", "graph"),
    ],
)
def test_the_users_own_forward_stays_wherever_it_still_fits(name, group, form):
    model, graph, _ = example(name)
    kept = {group: torch.arange(1, graph.group(group).units)}
    small, structure = cut_(copy.deepcopy(model), graph, kept)
    assert structure.form == form
    assert (type(small) is type(model)) == (form == "module")


def test_a_padded_shortcut_is_cut_on_its_sides_alone():
    model, graph, images = example("padded")
    kept = {"layer2.0.conv2": torch.tensor([1])}  # of the two channels that the padding adds
    small, structure = cut_(copy.deepcopy(model), graph, kept)
    assert structure.form == "graph"
    assert sorted(structure.constants.values()) == [0]
    assert small.get_submodule("layer2.0.conv2").weight.shape[0] == 5
    with torch.no_grad():
        torch.testing.assert_close(small(images), silenced_output(model, graph, kept, images))


def test_a_plain_cut_by_hand():
    model, graph, _ = example("plain")
    small, structure = cut_(copy.deepcopy(model), graph, {"0.0": torch.tensor([1, 4])})
    assert set(structure.cuts) == {
        AxisCut("0.0", "out", (1, 4)),
        AxisCut("0.1", "out", (1, 4)),
        AxisCut("1.0", "in", (1, 4)),
    }
    assert structure.form == "module"
    assert torch.equal(small[0][0].weight, model[0][0].weight[[1, 4]])
    assert torch.equal(small[0][1].running_var, model[0][1].running_var[[1, 4]])
    assert torch.equal(small[1][0].weight, model[1][0].weight[:, [1, 4]])
    assert (small[0][0].out_channels, small[0][1].num_features, small[1][0].in_channels) == (2, 2, 2)


def test_layers_know_their_new_sizes():
    for name in EXAMPLES:
        model, graph, _ = example(name)
        for module in cut(model, graph, random_kept(graph)).modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                shape = (module.out_channels, module.in_channels // module.groups)
                assert module.weight.shape[:2] == shape
            if isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            if isinstance(module, nn.BatchNorm2d):
                assert len(module.running_mean) == len(module.bias) == module.num_features


def test_a_chunk_of_unlike_halves_is_split_by_explicit_sizes():
    model, graph, images = example("chunk-apart")
    kept = {"conv.0": torch.tensor([0, 2]), "conv.0#1": torch.tensor([0, 1, 2, 4])}
    small, structure = cut_(copy.deepcopy(model), graph, kept)
    assert sorted(structure.constants.values()) == [2, 4]
    with torch.no_grad():
        torch.testing.assert_close(small(images), silenced_output(model, graph, kept, images))


def test_the_training_flags_stay():
    model, graph, _ = example("view-constant")
    model = copy.deepcopy(model).train()
    model.conv[1].eval()
    small = cut(model, graph, {"hidden": torch.tensor([0, 3])})
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]


def test_cuts_of_several_groups_meet_on_one_axis():
    model, graph, _ = example("concat")
    kept = {"a.0": torch.tensor([0, 4]), "b.0": torch.tensor([1])}
    cuts = {(one.owner, one.axis): one.kept for one in axis_cuts(model, graph, kept)}
    assert cuts["c.0", "in"] == (0, 4, 6)
    assert cuts["head.2", "in"] == (0, 4, 6, *range(12, 18))
    assert cuts["norm", "out"] == (0, 4, 6)


@pytest.mark.parametrize(
    "structure",
    [
        Structure((AxisCut("nowhere", "out", (0,)),)),
        Structure((AxisCut("0.0", "out", (99,)),)),
    ],
)
def test_a_structure_of_another_network_is_refused_in_one_line(structure):
    with pytest.raises(PruningError, match="does not fit Sequential") as caught:
        rebuild_(EXAMPLES["plain"].model(), None, structure)
    assert "\n" not in str(caught.value)


def test_a_bare_tensor_is_found_by_its_qualified_name():
    model = example("layer-scale")[0]
    assert bare_tensor(model, "scale") is model.scale
    assert bare_tensor(model, "stem.1.running_var") is model.stem[1].running_var
