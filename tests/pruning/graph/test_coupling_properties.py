"""Random networks of random blocks, pruned at random: what holds of the examples holds of these."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunegym.pruning.graph import find_groups
from prunegym.pruning.surgery.cutting import cut
from tests.pruning.example_networks import Head, randomised, unit
from tests.pruning.oracles import counted_macs, counted_params, random_kept, silenced_output
from tests.pruning.plans import cost_of, levels_of

IMAGE = (3, 8, 8)
SETTINGS = settings(max_examples=60, database=None)


class Plain(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.conv, self.bias = unit(cin, cout), nn.Conv2d(cout, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.bias(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.inner, self.outer = unit(cin, cout), unit(cout, cin)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x))


class Projected(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.inner, self.shortcut = unit(cin, cout), nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.shortcut(x)


class Padded(nn.Module):
    """A shortcut with more zero channels behind than before."""

    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.inner = unit(cin, cin + groups + 2)
        self.before, self.after = groups, 2

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + F.pad(x, (0, 0, 0, 0, self.before, self.after))


class Concatenated(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.left, self.right, self.norm = (
            unit(cin, cout),
            unit(cin, groups, 1),
            nn.BatchNorm2d(cin + cout + groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([self.left(x), x, self.right(x)], dim=1))


class Separable(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.depthwise, self.pointwise = unit(cin, cin * groups, groups=cin), unit(cin * groups, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Grouped(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.first, self.grouped = unit(cin, 2 * groups), unit(2 * groups, cout * groups, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.first(x))


class Shuffled(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.grouped, self.last = unit(cin, cout * groups), unit(cout * groups, cout)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(x)
        n, c, h, w = x.shape
        return self.last(x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, -1, h, w))


class Excited(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(cin, cout), nn.Linear(cout, cin)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * scale.unsqueeze(-1).unsqueeze(-1)


class Chunked(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.inner = unit(cin, cout * groups)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.inner(x).chunk(self.groups, dim=1)
        if self.groups < 2:
            return pieces[0]
        others = [pieces[number] for number in range(2, self.groups)]
        return torch.cat([pieces[0] * torch.sigmoid(pieces[1]), *others], dim=1)


class Sliced(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.inner, self.some, self.rest = unit(cin, cout + groups), unit(cout, 3), unit(groups, 3, 1)
        self.at = cout

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.some(x[:, : self.at]) + self.rest(x[:, self.at :])


BLOCKS = (
    Plain,
    Residual,
    Projected,
    Padded,
    Concatenated,
    Separable,
    Grouped,
    Shuffled,
    Excited,
    Chunked,
    Sliced,
)


@st.composite
def networks(draw) -> nn.Module:
    """A stem, one to four blocks, and a head or a flattening linear layer."""
    width = draw(st.integers(2, 6))
    layers: list[nn.Module] = [unit(3, width)]
    for _ in range(draw(st.integers(1, 4))):
        cin = nn.Sequential(*layers)(torch.zeros(2, *IMAGE)).size(1)
        layers.append(draw(st.sampled_from(BLOCKS))(cin, draw(st.integers(2, 6)), draw(st.integers(1, 3))))
    cin = nn.Sequential(*layers)(torch.zeros(2, *IMAGE)).size(1)
    flat = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4 * cin, 5))
    layers.append(flat if draw(st.booleans()) else Head(cin))
    return randomised(nn.Sequential(*layers), draw(st.integers(0, 1000)))


@torch.no_grad()
@SETTINGS
@given(model=networks(), seed=st.integers(0, 1000))
def test_any_cut_of_any_network_equals_silencing_and_costs_what_was_predicted(model, seed):
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(seed))
    graph = find_groups(model, IMAGE)
    assert graph.prunable
    assert all(
        group.frozen in (None, "it is the network's output", "it is a single unit") for group in graph.groups
    )
    kept = random_kept(graph, seed)
    small = cut(model, graph, kept)
    expected = silenced_output(model, graph, kept, images)
    scale = float(expected.abs().max())
    torch.testing.assert_close(small(images), expected, rtol=1e-4, atol=1e-5 * max(1.0, scale))
    assert set(small.state_dict()) == set(model.state_dict())
    counts = np.array([len(kept[group.name]) for group in graph.prunable], dtype=np.int64)
    cost, widths = cost_of(model, graph), levels_of(counts, counts)
    assert cost.price("macs", widths) == counted_macs(small, images[0])
    assert cost.price("params", widths) == counted_params(small)
