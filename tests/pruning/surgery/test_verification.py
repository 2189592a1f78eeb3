import copy
import logging

import pytest
import torch
from torch import nn

from prunegym.pruning.surgery.verification import NOT_EQUAL, in_double, silenced, trace
from tests.pruning.example_networks import EXAMPLES, Head, unit
from tests.pruning.oracles import assert_untouched, example, random_kept, silenced_output, snapshot


class CountsItsChannels(nn.Module):
    """Its value depends on how many channels there are, which no rule can see."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = unit(3, 6), unit(6, 8), Head(8)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.head(x * x.shape[1])


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryExample:
    def test_stands_the_trial_cut(self, name):
        model, graph, _ = example(name)
        assert trace(model, graph.input_shape).groups == graph.groups

    def test_is_silenced_as_by_weights_of_zero(self, name):
        model, graph, images = example(name)
        kept = random_kept(graph)
        with torch.no_grad(), silenced(model, graph, kept) as silent:
            found = silent(images)
        torch.testing.assert_close(found, silenced_output(model, graph, kept, images), rtol=1e-5, atol=1e-5)

    def test_is_left_as_it_was(self, name):
        model, graph, _ = example(name)
        model = copy.deepcopy(model).train()
        before = snapshot(model)
        trace(model, graph.input_shape)
        with silenced(model, graph, random_kept(graph)):
            pass
        assert_untouched(model, before)
        assert model.training


def test_a_group_that_cannot_be_cut_is_frozen_and_the_others_are_not(caplog):
    with caplog.at_level(logging.WARNING, logger="pruning"):
        graph = trace(CountsItsChannels(), (3, 6, 6))
    assert {group.name: group.frozen for group in graph.groups} == {
        "a.0": None,
        "b.0": NOT_EQUAL,
        "head.2": "it is the network's output",
    }
    assert graph.group("b.0").ungated == "it is frozen"
    assert caplog.messages == [f"b.0 is frozen: {NOT_EQUAL}"]


def test_silencing_ends_with_the_block_even_after_an_error():
    model, graph, images = example("plain")
    expected = model(images)
    with pytest.raises(RuntimeError, match="stop"), silenced(model, graph, random_kept(graph)):
        raise RuntimeError("stop")
    assert torch.equal(model(images), expected)


class ManyOutputs(nn.Module):
    """Truth values and whole numbers beside the scores."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Sequential(unit(3, 6), unit(6, 8)), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        scores = self.last(self.body(x))
        return {"scores": scores, "mask": scores > 0, "best": scores.argmax(1)}


def test_outputs_may_be_of_any_kind():
    graph = trace(ManyOutputs().eval(), (3, 6, 6))
    assert [group.frozen for group in graph.groups[:2]] == [None, None]


class Muted(CountsItsChannels):
    """The same behind a norm of scale zero, as networks that start their blocks muted have."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.head(self.norm(x * x.shape[1]))


class Squeezes(nn.Module):
    """Loses its channel dimension when only one channel is left."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.linear = unit(3, 6), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(self.pool(self.conv(x)).squeeze())


@pytest.mark.parametrize(("network", "group"), [(Muted, "b.0"), (Squeezes, "conv.0")])
def test_a_wrong_cut_shows_behind_a_scale_of_zero_and_at_a_single_unit(network, group):
    model = network().eval()
    assert {one.name: one.frozen for one in trace(model, (3, 8, 8)).groups}[group] == NOT_EQUAL


def test_a_trial_that_fails_prints_nothing(capfd):
    # a traced network holds its constants in a GraphModule, whose own call prints what it raises
    traced = torch.fx.symbolic_trace(EXAMPLES["padded"].model())
    assert trace(traced, EXAMPLES["padded"].input_shape).prunable
    assert capfd.readouterr().err == ""


class Chaotic(nn.Module):
    """Magnifies rounding: in single precision no two ways to compute it agree."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = unit(3, 64), unit(64, 64), Head(64)

    def forward(self, x):
        x = self.b(self.a(x))
        for _ in range(4):
            x = (100 * x) % 1
        return self.head(x)


def test_rounding_freezes_nothing():
    assert len(trace(Chaotic(), (3, 6, 6)).prunable) == 2


class Casts(nn.Module):
    """Does not run in double precision."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = unit(3, 6), unit(6, 8), Head(8)

    def forward(self, x):
        return self.head(self.b(self.a(x).float()))


def test_a_network_that_runs_in_single_precision_alone_is_tried_in_that():
    assert len(trace(Casts(), (3, 6, 6)).prunable) == 2
    assert next(in_double(Casts(), (3, 6, 6)).parameters()).dtype == torch.float


class Faint(CountsItsChannels):
    """The same, in an output that hardly depends on its input."""

    def forward(self, x):
        return 1 + 1e-5 * super().forward(x)


def test_a_wrong_cut_shows_in_an_output_that_hardly_changes():
    assert trace(Faint(), (3, 6, 6)).group("b.0").frozen == NOT_EQUAL


class CountsTwice(nn.Module):
    """Two groups that cannot be cut, among others that can."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([unit(3, 4), unit(4, 5), unit(5, 6), unit(6, 7), unit(7, 8)])
        self.head = Head(8)

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in (1, 4):
                x = x * x.shape[1]
        return self.head(x)


def test_bad_groups_are_found_wherever_they_are():
    frozen = {group.name: group.frozen for group in trace(CountsTwice(), (3, 6, 6)).groups}
    assert [name for name, reason in frozen.items() if reason == NOT_EQUAL] == ["layers.1.0", "layers.4.0"]
    assert [name for name, reason in frozen.items() if reason is None] == [f"layers.{n}.0" for n in (0, 2, 3)]
