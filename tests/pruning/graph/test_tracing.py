"""What people write in a forward is followed, or left as one operator while the rest is pruned."""

import copy
import linecache
import warnings

import einops
import pytest
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange, Reduce
from torch import nn

from prunegym.pruning.errors import UntraceableModelError
from prunegym.pruning.graph import find_groups
from prunegym.pruning.graph.rules import FUNCTION_RULES
from prunegym.pruning.graph.tracing import trace_program
from prunegym.pruning.surgery.cutting import attempt, cut
from prunegym.pruning.surgery.verification import trace
from tests.pruning.example_networks import randomised, unit
from tests.pruning.oracles import assert_untouched, snapshot

OUTPUT = "it is the network's output"


def swish(x):
    return x * torch.sigmoid(x)


with warnings.catch_warnings():  # torch means to give it up; people's networks have it
    warnings.simplefilter("ignore")
    scripted_swish = torch.jit.script(swish)


class Network(nn.Module):
    """Three units of 6, 8 and 10 channels; what is done after the second one is to be filled in."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = unit(3, 6), unit(6, 8), unit(8, 10), nn.Linear(10, 4)

    def middle(self, x):
        return x

    def forward(self, x):
        return self.head(self.c(self.middle(self.b(self.a(x)))).mean((2, 3)))


def with_middle(function, **parts):
    """Return a network that calls a function of itself and what its second unit gives."""

    class Filled(Network):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    Filled.middle = function
    return randomised(Filled(), 0)


def halves_in_a_list(self, x):
    parts = list(x.chunk(2, 1))
    parts.append(parts[-1] + parts[0])
    return torch.cat(parts[::-1][:2], 1)


def written_by_halves(self, x):
    y = torch.zeros_like(x)
    y[:, :4] = x[:, :4]
    y[:, 4:] = 2 * x[:, 4:]
    return y


def written_behind_an_ellipsis(self, x):
    y = x.permute(0, 2, 3, 1).clone()
    y[..., 4:] += 1
    return y.permute(0, 3, 1, 2)


def row_of_zeros(self, x):
    x[:, :, 0] = 0
    return x


def weighted_by_softmax(self, x):
    w = self.weigh(x.mean((2, 3))).view(-1, 2, 8).softmax(1)
    return x * w[:, 0, :, None, None] + x * w[:, 1, :, None, None]


def there_and_back(self, x):
    return einops.rearrange(einops.rearrange(x, "b c h w -> b (h w) c"), "b (h w) c -> b c h w", h=x.shape[2])


def shuffled(self, x):
    return einops.rearrange(x, "b (g c) ... -> b (c g) ...", g=2)


def in_groups_of_four(self, x):
    x = einops.rearrange(x, "b (g c) h w -> b g c h w", c=4)
    return einops.rearrange(x.flip(1), "b g c h w -> b (g c) h w")


def spread_again(self, x):
    return x * einops.repeat(einops.reduce(x, "b c h w -> b c", "mean"), "b c -> b c h w", h=1, w=1)


def by_letters(self, x):
    return torch.einsum("bchw, bc -> bchw", x, torch.sigmoid(self.weigh(x.mean((2, 3)))))


def positions_by_letters(self, x):
    return x + torch.einsum("bchw,hv->bcvw", x, torch.eye(x.shape[2]))


def loop_over_a_buffer(self, x):
    return sum(x * scale for scale in self.scales)


def numbers_from_nowhere(self, x):
    return x * torch.tensor([0.5, 2.0])[1]


def largest_channel(self, x):
    return einops.reduce(x, "b c h w -> b 1 h w", "max") * x


def scripted(self, x):
    return scripted_swish(x)


FOLLOWED = {
    "a list of halves": with_middle(halves_in_a_list),
    "halves written into": with_middle(written_by_halves),
    "written behind an ellipsis": with_middle(written_behind_an_ellipsis),
    "a row of zeros": with_middle(row_of_zeros),
    "None in an index": with_middle(weighted_by_softmax, weigh=nn.Linear(8, 16)),
    "einops there and back": with_middle(there_and_back),
    "einops shuffles": with_middle(shuffled),
    "einops groups": with_middle(in_groups_of_four),
    "einops reduces and repeats": with_middle(spread_again),
    "a layer of einops": with_middle(lambda self, x: self.turn(x), turn=Rearrange("b c h w -> b c w h")),
    "another layer of einops": with_middle(
        lambda self, x: x * self.pool(x)[..., None, None], pool=Reduce("b c h w -> b c", "max")
    ),
    "einsum by channels": with_middle(by_letters, weigh=nn.Linear(8, 8)),
    "einsum by positions": with_middle(positions_by_letters),
    "a buffer in a loop": with_middle(loop_over_a_buffer),
    "a tensor made on the way": with_middle(numbers_from_nowhere),
}
FOLLOWED["a buffer in a loop"].register_buffer("scales", torch.tensor([0.5, 2.0]))
NOT_FOLLOWED = {
    "einops picks apart": (
        with_middle(largest_channel),
        "reduce reduces over channels",
    ),
    "einsum over channels": (
        with_middle(lambda self, x: x * torch.einsum("bchw,bchw->bhw", x, x)[:, None]),
        "einsum sums over channels",
    ),
    "written over by number": (
        with_middle(lambda self, x: x.clone().__setitem__((slice(None), 0), 0.0) or x),
        "its channels are picked by number or step",
    ),
    "a scripted function": (
        with_middle(scripted),
        "ScriptFunction is not followed",
    ),
}


def prunable(graph):
    return {group.name: group.frozen for group in graph.groups}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_hinders_no_group(name):
    model = FOLLOWED[name]
    before = snapshot(model)
    graph = trace(model, (3, 6, 6))  # a group whose cut would not equal silencing it is frozen
    frozen = {group: why for group, why in prunable(graph).items() if why is not None}
    assert frozen == {"head": OUTPUT}
    assert_untouched(model, before)


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_is_not_followed_freezes_only_the_channels_it_meets(name):
    model, reason = NOT_FOLLOWED[name]
    graph = trace(model, (3, 6, 6))
    assert prunable(graph) == {"a.0": None, "b.0": reason, "c.0": None, "head": OUTPUT}


class TestTheNetworksOwnForward:
    """It cannot be one operator, as a submodule can: a call or a statement in it is."""

    class BranchesOnValues(Network):
        def forward(self, x):
            x = self.b(self.a(x))
            if x.max() > 1:
                scale = x.max()
                x = x / scale
            return super().forward(x[:, :3])

    class LoopsOnValues(Network):
        def middle(self, x):
            count = int(x.abs().max()) + 1
            for _ in range(count):
                x = x * 0.9
            return x

    class TakesANumberOut(Network):
        def middle(self, x):
            if x.max().item() > 1:
                x = x - 1
            return x

    class BranchesAroundALayer(Network):
        def middle(self, x):
            if x.max() > 1:
                x = self.extra(x)
            return x

    @pytest.mark.parametrize("network", [BranchesOnValues, LoopsOnValues, TakesANumberOut])
    def test_what_stops_it_is_one_operator_and_depends_on_the_images_as_before(self, network):
        model = randomised(network(), 0)
        forward, middle = network.forward, network.middle
        graph = trace(model, (3, 6, 6))
        assert (network.forward, network.middle) == (forward, middle)
        assert prunable(graph)["a.0"] is None
        assert prunable(graph)["b.0"] is not None
        program = trace_program(model, (3, 6, 6))
        for scale in (0.01, 1.0, 30.0):
            images = scale * torch.randn(5, 3, 6, 6)
            torch.testing.assert_close(attempt(program, images), model(images))

    def test_a_branch_around_a_layer_is_refused_with_its_line(self):
        with pytest.raises(UntraceableModelError) as caught:
            find_groups(self.BranchesAroundALayer(), (3, 6, 6))
        message = str(caught.value)
        assert message.startswith(
            "BranchesAroundALayer cannot be followed: it branches on what a tensor holds in "
        )
        file, line, code = message.partition(" holds in ")[2].partition(";")[0].split(":", 2)
        assert file == __file__
        assert code.strip() == linecache.getline(__file__, int(line)).strip() == "if x.max() > 1:"
        assert message.endswith(
            "; move that into a submodule, which is then left as it is while the rest is pruned"
        )

    def test_one_that_takes_two_inputs_is_refused_with_what_to_write(self):
        class Two(Network):
            def forward(self, x, y):
                return super().forward(x + y)

        with pytest.raises(
            UntraceableModelError, match=r"wrap it in a module whose forward\(self, x\) calls it"
        ):
            find_groups(Two(), (3, 6, 6))

    def test_what_it_takes_beside_the_images_has_its_defaults(self):
        class Anything(Network):
            def forward(self, x, *args, augment=False, targets=None, **kwargs):
                if augment or targets is not None:
                    raise ValueError("in training only")
                return super().forward(x, *args, **kwargs)

        assert prunable(trace(Anything(), (3, 6, 6))) == {
            "a.0": None,
            "b.0": None,
            "c.0": None,
            "head": OUTPUT,
        }


class KeepsAGrid(nn.Module):
    """A head that keeps a grid for the last size of image, and decodes in place."""

    def __init__(self, stops):
        super().__init__()
        self.conv, self.stops = nn.Conv2d(8, 4, 1), stops
        self.grid, self.seen = None, {"sizes": []}

    def forward(self, x):
        y = self.conv(x)
        if self.grid is None or self.grid.shape[-2:] != y.shape[-2:]:
            self.grid = torch.ones(y.shape[-2:]).to(y)
            self.seen["sizes"].append(y.shape[-1])
        y[:, :2] = y[:, :2] + self.grid
        if self.stops and y.sum() > 0:
            y = y + 1
        return y


@pytest.mark.parametrize("stops", [False, True])
def test_a_module_that_keeps_what_it_computes_is_left_as_it_was(stops):
    model = nn.Sequential(unit(3, 6), unit(6, 8), KeepsAGrid(stops))
    program = trace_program(model, (3, 6, 6))
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(attempt(program, images), model.eval()(images))
    groups = prunable(find_groups(model, (3, 6, 6)))
    assert groups["0.0"] is None
    assert (groups["1.0"] is None) == (not stops)
    assert model[2].seen == {"sizes": [6]}  # by the network itself, above


def test_constants_travel_with_a_program_that_takes_the_forwards_place():
    class Counts(Network):
        def middle(self, x):
            return x.view(-1, 8, 6, 6) * torch.tensor([[2.0], [3.0]])[1]

    model = randomised(Counts(), 0)
    graph = trace(model, (3, 6, 6))
    small = cut(model, graph, {"b.0": torch.tensor([0, 2, 5])})
    assert isinstance(small, torch.fx.GraphModule)
    images = torch.randn(2, 3, 6, 6)
    assert torch.equal(attempt(copy.deepcopy(small), images), attempt(small, images))


def test_an_axis_of_no_entries_names_no_channel():
    class Empty(Network):
        def middle(self, x):
            return torch.cat([x, torch.empty(len(x), 0, *x.shape[2:])], 1)

    assert prunable(trace(Empty(), (3, 6, 6))) == {"a.0": None, "b.0": None, "c.0": None, "head": OUTPUT}


def test_a_fault_of_a_rule_is_not_told_as_the_networks(monkeypatch):
    def faulty(propagation, call):
        raise IndexError("one too many")

    monkeypatch.setitem(FUNCTION_RULES, F.relu, faulty)
    model = with_middle(lambda self, x: F.relu(x))
    assert prunable(trace(model, (3, 6, 6)))["b.0"] == "the rule for relu failed: one too many"


@pytest.mark.parametrize("result", [None, (), 3])
def test_a_network_that_gives_no_tensor_has_no_groups(result):
    class Nothing(Network):
        def forward(self, x):
            return result

    assert find_groups(Nothing(), (3, 6, 6)).groups == ()
