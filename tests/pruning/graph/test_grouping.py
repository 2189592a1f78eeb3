import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.errors import UntraceableModelError
from prunegym.pruning.graph import ChannelGroup, find_groups
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.surgery.verification import trace
from tests.pruning.example_networks import EXAMPLES, Head, unit
from tests.pruning.oracles import assert_untouched, counted_macs, example, snapshot

UNITS = {  # of every prunable group, by hand
    "plain": {"0.0": 6, "1.0": 8},
    "residual": {"stem.0": 6, "a.0": 8},
    "blocks": {"0.0": 6, "1.first.0": 5, "2.0.branch.0.0": 8, "2.1.first.0": 4, "3.0": 7},
    "padded": {
        "conv1": 4,
        "layer1.0.conv1": 4,
        "layer2.0.conv1": 6,
        "layer2.0.conv2": 2,
        "layer3.0.conv1": 10,
        "layer3.0.conv2": 4,
    },
    "projected": {
        "conv1": 4,
        "layer1.0.conv1": 4,
        "layer2.0.conv1": 6,
        "layer2.0.conv2": 6,
        "layer3.0.conv1": 10,
        "layer3.0.conv2": 10,
    },
    "concat": {"a.0": 5, "b.0": 7, "c.0": 6},
    "depthwise": {"stem.0": 6, "pw1.0": 8, "pw2.0": 5},
    "grouped": {"stem.0": 3, "grouped.0": 2, "last.0": 6},
    "grouped-pairs": {"0.0": 2, "1.0": 4, "2.0": 6},  # a channel of each of 4 conv groups is a unit
    "shuffled": {"a.0": 4, "b.0": 4, "c.0": 6},
    "shuffled-ungrouped": {"a.0": 12, "b.0": 4, "c.0": 6},
    "shuffled-constants": {"a.0": 4, "b.0": 4, "c.0": 6},
    "shuffled-module": {"a.0": 4, "b.0": 4, "c.0": 6},
    "flatten": {"conv.0": 6, "hidden": 10},
    "view-constant": {"conv.0": 6, "hidden": 10},
    "squeeze-excite": {"conv.0": 8, "fc1": 4, "last.0": 6},
    "chunk-joined": {"conv.0": 5, "left.0": 6},
    "chunk-apart": {"conv.0": 5, "conv.0#1": 5, "left.0": 6, "right.0": 7},
    "split-apart": {"conv.0": 5, "conv.0#1": 5, "left.0": 6, "right.0": 7},
    "slices": {"conv.0": 5, "conv.0#1": 5, "left.0": 6, "right.0": 7},
    "slices-negative": {"conv.0": 5, "left.0": 6},
    "pixel-shuffle": {"conv.0": 3, "last.0": 6},
    "layer-scale": {"stem.0": 6},
    "transposed": {"down.0": 8, "up": 3, "grouped": 2},
    "called-twice": {"stem.0": 6},
    "tied-weights": {"free.0": 7},
    "conv1d": {"a": 6, "b": 8},
    "conv3d": {"a": 4, "b": 6},
    "mlp": {"0": 9},
    "one-channel": {"0.0": 6, "2.0": 4},
    "tokens": {"conv.0": 6, "linear": 7},
    "tokens-folded": {"conv.0": 6, "linear": 7},
    "softmax": {"last.0": 8},
    "layer-norm": {"last.0": 8},
    "group-norm": {"conv.0": 3, "last.0": 8},
    "attention": {"conv.0": 6},
    "unused-head": {"conv.0": 6, "hidden": 10},
    "variants": {"a": 8, "c": 7},
    "by-size": {"a.0": 6, "b.0": 8},
    "untraceable-block": {"stem.0": 6, "inner.0": 7, "last.0": 8},
    "scaled-last": {"stem.0": 6},
    "bias-free": {"0.0": 6, "1.0": 8},
}

FROZEN = {
    "softmax": ("conv.0", "operator mixes channels"),
    "layer-norm": ("conv.0", "operator.operator mixes channels"),
    "attention": ("qkv", "no rule for matmul"),
    "tied-weights": ("a", "a shares its weights with another layer"),
    "plain": ("2.2", "it is the network's output"),
    "untraceable-block": (
        "block.0.0",
        "Branching is not followed: it branches on what a tensor holds",
    ),
}

UNGATED = {
    "residual": ("stem.0", "several layers write these channels"),
    "called-twice": ("stem.0", "several layers write these channels"),
    "tokens-folded": ("linear", "a layer that writes or reads them sees the places of all images in one row"),
    "softmax": ("conv.0", "it is frozen"),
}


def members(graph, name, role):
    """Owner -> positions of each unit."""
    return {member.owner: member.channels for member in getattr(graph.group(name), role)}


def runs(*starts, count):
    """The positions (start + k, ...) of unit k."""
    return tuple(tuple(start + k for start in starts) for k in range(count))


def freezing_reasons(model, input_shape=(3, 6, 6)):
    return {group.name: group.frozen for group in find_groups(model, input_shape).groups}


def with_forward(function, **layers):
    """A module of `layers` whose forward is `function`."""

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x):
            return function(self, x)

    return Custom()


def test_every_example_has_its_expectation():
    assert set(UNITS) == set(EXAMPLES)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryExample:
    def test_has_the_groups_found_by_hand(self, name):
        assert {group.name: group.units for group in example(name)[1].prunable} == UNITS[name]

    def test_gives_every_position_of_an_axis_to_one_unit_at_most(self, name):
        graph = example(name)[1]
        seen = set()
        for group in graph.groups:
            for role in ("writers", "carriers", "readers", "parameters", "constants"):
                for member in getattr(group, role):
                    assert len(member.channels) == group.units
                    places = {
                        (role, member.owner, member.axis, channel)
                        for unit in member.channels
                        for channel in unit
                    }
                    assert len(places) == sum(map(len, member.channels))
                    assert not places & seen
                    seen |= places
        for layer in graph.layers.values():
            role = "carriers" if layer.depthwise else "writers"
            assert all((role, layer.name, 0, channel) in seen for channel in range(layer.cout))

    def test_groups_come_to_json_and_back_equal(self, name):
        for group in example(name)[1].groups:
            assert ChannelGroup.from_dict(json.loads(json.dumps(group.to_dict()))) == group

    def test_is_left_bit_equal_and_traced_the_same_again(self, name):
        model = EXAMPLES[name].model()
        model.train()
        before = snapshot(model)
        assert find_groups(model, EXAMPLES[name].input_shape).groups == example(name)[1].groups
        assert_untouched(model, before)
        assert model.training


@pytest.mark.parametrize("name", list(FROZEN))
def test_what_mixes_channels_is_frozen_with_the_reason(name):
    group, reason = FROZEN[name]
    assert example(name)[1].group(group).frozen == reason


@pytest.mark.parametrize("name", list(UNGATED))
def test_what_takes_no_gate_says_why(name):
    group, reason = UNGATED[name]
    assert example(name)[1].group(group).ungated == reason


def test_plain_members_by_hand():
    graph = example("plain")[1]
    assert members(graph, "0.0", "writers") == {"0.0": runs(0, count=6)}
    assert members(graph, "0.0", "carriers") == {"0.1": runs(0, count=6)}
    assert members(graph, "0.0", "readers") == {"1.0": runs(0, count=6)}
    assert members(graph, "1.0", "readers") == {"2.2": runs(0, count=8)}
    assert graph.group("0.0").ungated is None


def test_a_shuffle_leads_to_other_places_in_the_reader():
    # (3, 4) -> (4, 3): channel 4 g + k of the writer is read at place 3 k + g
    for name in ("shuffled", "shuffled-ungrouped", "shuffled-constants", "shuffled-module"):
        graph = example(name)[1]
        assert members(graph, "b.0", "writers") == {"b.0": runs(0, 4, 8, count=4)}
        assert members(graph, "b.0", "readers") == {
            "c.0": tuple((3 * k, 3 * k + 1, 3 * k + 2) for k in range(4))
        }


@pytest.mark.parametrize(("channels", "groups"), [(6, 3), (9, 3), (12, 3), (8, 4)])
def test_the_places_inside_the_groups_of_a_shuffle_are_what_is_pruned(channels, groups):
    def shuffle(m, x):
        x = m.conv(x)
        n, c, h, w = x.shape
        return m.head(x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w))

    model = with_forward(shuffle, conv=unit(3, channels), head=Head(channels))
    graph = trace(model, (3, 6, 6))
    size = channels // groups
    assert members(graph, "conv.0", "writers") == {
        "conv.0": runs(*range(0, channels, size), count=size),
    }
    assert graph.group("conv.0").frozen is None


def test_grouped_convolutions_tie_the_kth_channel_of_each_group():
    graph = example("grouped")[1]
    assert members(graph, "stem.0", "readers") == {"grouped.0": runs(0, 3, 6, 9, count=3)}
    assert members(graph, "grouped.0", "writers") == {"grouped.0": runs(0, 2, 4, 6, count=2)}


def test_concatenated_channels_are_read_behind_each_other():
    graph = example("concat")[1]
    assert members(graph, "a.0", "readers") == {
        "b.0": runs(0, count=5),
        "c.0": runs(0, count=5),
        "head.2": runs(0, count=5),
    }
    assert members(graph, "b.0", "readers") == {"c.0": runs(5, count=7), "head.2": runs(5, count=7)}
    assert members(graph, "b.0", "carriers") == {"b.1": runs(0, count=7), "norm": runs(5, count=7)}
    assert members(graph, "c.0", "readers") == {"head.2": runs(12, count=6)}


def test_a_depthwise_convolution_carries_its_channels():
    graph = example("depthwise")[1]
    doubled = tuple((2 * k, 2 * k + 1) for k in range(8))
    assert members(graph, "pw1.0", "carriers") == {
        "pw1.1": runs(0, count=8),
        "dw2.0": doubled,
        "dw2.1": doubled,
    }
    assert members(graph, "pw1.0", "readers") == {"pw2.0": doubled}


def test_a_flattened_channel_is_read_at_every_place_of_its_map():
    for name in ("flatten", "view-constant"):
        nine = tuple(tuple(range(9 * k, 9 * k + 9)) for k in range(6))
        assert members(example(name)[1], "conv.0", "readers") == {"hidden": nine}


def test_sizes_written_into_the_forward_are_found():
    assert [c.size for c in example("view-constant")[1].constants.values()] == [54]
    assert [c.size for c in example("shuffled-constants")[1].constants.values()] == [4, 12]
    assert [c.size for c in example("chunk-apart")[1].constants.values()] == [5, 5]
    assert [c.size for c in example("slices")[1].constants.values()] == [5, 5]
    assert not example("shuffled")[1].constants


def test_chunks_of_one_layer_are_groups_of_their_own():
    graph = example("chunk-apart")[1]
    assert members(graph, "conv.0", "writers") == {"conv.0": runs(0, count=5)}
    assert members(graph, "conv.0#1", "writers") == {"conv.0": runs(5, count=5)}
    assert members(graph, "conv.0#1", "readers") == {"right.0": runs(0, count=5)}


def test_bare_parameters_are_cut_along_their_channels():
    (place, scale) = sorted(example("layer-scale")[1].group("stem.0").parameters, key=lambda m: m.owner)
    assert (place.owner, place.channels) == ("place", runs(0, count=6))
    assert (scale.owner, scale.channels) == ("scale", runs(0, count=6))
    model = example("layer-scale")[0]
    assert model.place.size(place.axis) == model.scale.size(scale.axis) == 6
    assert place.axis % 4 == 1
    assert scale.axis % 3 == 0


def test_a_pixel_shuffle_ties_the_channels_that_make_one():
    graph = example("pixel-shuffle")[1]
    assert members(graph, "conv.0", "writers") == {
        "conv.0": tuple(tuple(range(4 * k, 4 * k + 4)) for k in range(3))
    }
    assert members(graph, "conv.0", "readers") == {"last.0": runs(0, count=3)}


def test_cifar_resnet20_by_hand():
    network = resolve_network("cifar_resnet20")
    graph = find_groups(network.build(), network.input_shape)
    inner = {f"layer{s}.{b}.conv1": width for s, width in ((1, 16), (2, 32), (3, 64)) for b in range(3)}
    trunks = {"conv1": 16, "layer2.0.conv2": 16, "layer3.0.conv2": 32}
    assert {group.name: group.units for group in graph.prunable} == {**inner, **trunks}
    assert [group.name for group in graph.groups if group.frozen] == ["linear"]
    stage = {s: [f"layer{s}.{b}.conv2" for b in range(3)] for s in (1, 2, 3)}
    # a shortcut pads 8, then 16 zero channels on either side
    assert members(graph, "conv1", "writers") == {
        **dict.fromkeys(["conv1", *stage[1]], runs(0, count=16)),
        **dict.fromkeys(stage[2], runs(8, count=16)),
        **dict.fromkeys(stage[3], runs(24, count=16)),
    }
    second, third = (0, *range(1, 8), *range(24, 32)), (*range(16), *range(48, 64))
    assert members(graph, "layer2.0.conv2", "writers") == {
        **dict.fromkeys(stage[2], tuple((k,) for k in second)),
        **dict.fromkeys(stage[3], tuple((16 + k,) for k in second)),
    }
    assert members(graph, "layer3.0.conv2", "writers") == dict.fromkeys(stage[3], tuple((k,) for k in third))
    assert set(members(graph, "conv1", "readers")) == {*inner, "linear"}
    assert {group.name for group in graph.prunable if group.ungated is None} == set(inner)


def test_the_groups_of_a_group_norm_are_units():
    graph = example("group-norm")[1]
    pairs = tuple((k, k + 1) for k in (0, 2, 4))
    assert members(graph, "conv.0", "writers") == {"conv.0": pairs}
    assert members(graph, "conv.0", "carriers") == {"conv.1": pairs, "operator": pairs}
    assert members(graph, "conv.0", "readers") == {"last.0": pairs}


def test_a_group_norm_over_all_channels_mixes_them():
    model = nn.Sequential(unit(3, 6), nn.GroupNorm(1, 6), Head(6))
    assert find_groups(model, (3, 6, 6)).group("0.0").frozen == "1 mixes channels"


def test_groups_come_in_the_order_of_execution():
    names = [group.name for group in example("projected")[1].groups]
    assert names == [*UNITS["projected"], "linear"]


def test_an_image_of_the_wrong_shape_is_refused_in_one_line():
    with pytest.raises(
        UntraceableModelError, match=r"does not run on an image of shape \(4, 6, 6\)"
    ) as caught:
        find_groups(EXAMPLES["plain"].model(), (4, 6, 6))
    assert "\n" not in str(caught.value)
    assert "executing" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.head(torch.cumsum(m.conv(x), 1)), "no rule for cumsum"),
        (lambda m, x: m.head(m.act(input=m.conv(x))), "act takes its input by keyword"),
        (lambda m, x: m.head(m.conv(x) * m.conv(x).mean(1, keepdim=True)), "mean reduces over channels"),
        (lambda m, x: m.head(m.conv(x)[:, [3, 2, 1, 0, 4, 5]]), "indexed in a way that is not understood"),
        (lambda m, x: m.head(m.conv(x)[:, ::1] + x.new_ones(6, 1, 1)), "no rule for new_ones"),
        (lambda m, x: m.head(m.conv(x) + m.map.weight.sum(0).view(6, 1, 1)), "a constant per channel"),
    ],
)
def test_what_has_no_rule_is_frozen_with_its_reason(function, reason):
    layers = {"conv": unit(3, 6), "head": Head(6), "act": nn.ReLU(), "map": nn.Linear(6, 6)}
    assert reason in freezing_reasons(with_forward(function, **layers))["conv.0"]


def test_a_subclass_that_does_more_or_a_reparametrised_layer_is_frozen():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    class Standardised(nn.Conv2d):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.gain = nn.Parameter(torch.ones(6, 1, 1, 1))

        def forward(self, x):
            return F.conv2d(x, self.gain * (self.weight - self.weight.mean((1, 2, 3), keepdim=True)))

    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3))
    for layer, reason in (
        (Scaled(6, 6, 3), "no rule for Scaled"),
        (normed, "no rule for ParametrizedConv2d"),
        (Standardised(6, 6, 3), "conv2d has weights that are no layer's own"),
    ):
        assert freezing_reasons(nn.Sequential(unit(3, 6), layer, Head(6)))["0.0"] == reason


def test_nothing_is_left_of_a_block_that_could_not_be_followed():
    model, graph, images = example("untraceable-block")
    assert "block.1.conv" not in graph.layers
    assert graph.macs == counted_macs(model, images[0])


def test_a_variant_that_changes_the_shape_of_its_input_is_frozen():
    class Flattening(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

    reasons = freezing_reasons(nn.Sequential(unit(3, 6), Flattening(6 * 36, 5)))
    assert reasons["0.0"] == "no rule for Flattening"


def test_one_channel_spread_over_many_is_frozen():
    def attend(m, x):
        return m.head(m.conv(x) * torch.sigmoid(m.place(x)))

    reasons = freezing_reasons(with_forward(attend, conv=unit(3, 6), place=nn.Conv2d(3, 1, 1), head=Head(6)))
    assert reasons == {
        "conv.0": None,
        "place": "mul spreads it over other channels",
        "head.2": "it is the network's output",
    }


def test_channels_that_nothing_reads_take_no_gate():
    def forgetful(m, x):
        m.lost(x)
        return m.head(m.conv(x))

    graph = find_groups(
        with_forward(forgetful, conv=unit(3, 6), lost=nn.Conv2d(3, 4, 1), head=Head(6)), (3, 6, 6)
    )
    assert graph.group("lost").ungated == "no layer reads these channels"


class TestLayerShapes:
    def test_of_a_strided_convolution_by_hand(self):
        layer = example("plain")[1].layers["1.0"]
        assert (layer.cin, layer.cout, layer.kernel, layer.positions, layer.calls) == (6, 8, 9, 9, 1)
        assert layer.batch_norm == "1.1"
        assert layer.macs == 9 * 6 * 8 * 9

    def test_of_a_layer_called_twice_add_up(self):
        layer = example("called-twice")[1].layers["shared"]
        assert (layer.calls, layer.positions, layer.batch_norm) == (2, 72, None)

    def test_of_a_transposed_convolution_count_its_inputs(self):
        layer = example("transposed")[1].layers["up"]
        assert (layer.positions, layer.kernel) == (16, 4)

    def test_see_every_row_where_images_are_folded_into_rows(self):
        folded, plain = (example(name)[1].layers["linear"] for name in ("tokens-folded", "tokens"))
        assert folded.positions == plain.positions == 36
        assert (folded.by_image, plain.by_image) == (False, True)

    def test_know_no_batch_norm_that_two_layers_share(self):
        def twice(m, x):
            return m.head(m.norm(m.a(x)) + m.norm(m.b(x)))

        layers = {
            "a": nn.Conv2d(3, 6, 1),
            "b": nn.Conv2d(3, 6, 1),
            "norm": nn.BatchNorm2d(6),
            "head": Head(6),
        }
        graph = find_groups(with_forward(twice, **layers), (3, 6, 6))
        assert graph.layers["a"].batch_norm is graph.layers["b"].batch_norm is None

    def test_know_no_batch_norm_beside_another_consumer(self):
        def beside(m, x):
            x = m.a(x)
            return m.head(m.norm(x) + x)

        layers = {"a": nn.Conv2d(3, 6, 1), "norm": nn.BatchNorm2d(6), "head": Head(6)}
        assert find_groups(with_forward(beside, **layers), (3, 6, 6)).layers["a"].batch_norm is None

    def test_know_no_batch_norm_without_statistics(self):
        model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, track_running_stats=False), Head(6))
        assert find_groups(model, (3, 6, 6)).layers["0"].batch_norm is None


def test_a_group_is_found_by_name_and_counts_as_frozen_with_a_reason():
    graph = example("plain")[1]
    group = graph.group("1.0")
    assert group.layers == ("1.0",)
    frozen = replace(graph, groups=(replace(group, frozen="no"),))
    assert frozen.prunable == ()
