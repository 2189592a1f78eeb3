"""Small networks, each with one way of tying channels together; weights and statistics are random."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.pruning.networks.resnets import PaddedShortcut, ProjectedShortcut, ResNet

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and BatchNorm statistic anew, so that nothing is trivially zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * max(1, fan_in / 2) ** -0.5)
        for module in model.modules():
            if isinstance(module, NORMS):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 2)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


def unit(cin: int, cout: int, kernel: int = 3, **options) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())


def bare(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.ReLU())


class Head(nn.Sequential):
    def __init__(self, cin: int, bias: bool = True) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, 5, bias=bias))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = unit(3, 6), unit(6, 8), unit(8, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.b(self.a(x))))


class Basic(nn.Module):
    """A residual block: relu(x + f(x))."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first, self.act = unit(channels, inner), nn.ReLU()
        self.second = nn.Sequential(
            nn.Conv2d(inner, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.first(x)) + x)


class Inverted(nn.Module):
    """A residual block with a depthwise convolution, nothing after its sum."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            unit(channels, inner, 1), unit(inner, inner, groups=inner), nn.Conv2d(inner, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class PreActivated(nn.Module):
    """A residual block whose BatchNorm and activation come first."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.first, self.second = unit(channels, inner), nn.Conv2d(inner, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(F.relu(self.norm(x)))
        return torch.add(self.second(out), x)


def blocks() -> nn.Sequential:
    """Residual blocks of three kinds, each of which can be left out."""
    return nn.Sequential(
        unit(3, 6), Basic(6, 5), nn.Sequential(Inverted(6, 8), PreActivated(6, 4)), unit(6, 7), Head(7)
    )


class Dense(nn.Module):
    """Concatenation, with a BatchNorm after it, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = unit(3, 5), unit(5, 7), nn.BatchNorm2d(12)
        self.c, self.head = unit(12, 6), Head(18)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        both = torch.cat([a, self.b(a)], 1)
        return self.head(torch.cat([both, self.c(F.relu(self.norm(both)))], dim=1))


class Depthwise(nn.Module):
    """Depthwise separable convolutions, the second with two outputs per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 6)
        self.dw1, self.pw1 = unit(6, 6, groups=6), unit(6, 8, 1)
        self.dw2, self.pw2 = unit(8, 16, groups=8), unit(16, 5, 1)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pw2(self.dw2(self.pw1(self.dw1(self.stem(x))))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.last, self.head = (
            unit(3, 12),
            unit(12, 8, groups=4),
            unit(8, 6),
            Head(6),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.grouped(self.stem(x))))


class Shuffled(nn.Module):
    """A channel shuffle behind a (grouped) convolution, written with the sizes of the tensor."""

    def __init__(self, groups: int = 3) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = unit(3, 12), unit(12, 12, groups=groups), unit(12, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.c(x))


class ShuffledByConstants(Shuffled):
    """The same with literal sizes."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).view(-1, 3, 4, 6, 6).transpose(1, 2).contiguous().view(-1, 12, 6, 6)
        return self.head(self.c(x))


class ShuffledByModule(Shuffled):
    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.shuffle(self.b(self.a(x)))))


class Flattened(nn.Module):
    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.conv, self.hidden, self.linear = unit(3, 6), nn.Linear(54, 10), nn.Linear(10, 5)
        self.literal = literal

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 2)
        x = x.view(-1, 54) if self.literal else torch.flatten(x, 1)
        return self.linear(F.relu(self.hidden(x)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = unit(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last, self.head = unit(8, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.last(x * scale))


class Halves(nn.Module):
    """Chunks that multiply each other, and chunks that go separate ways."""

    def __init__(self, pieces: Callable[[Tensor], tuple[Tensor, Tensor]], join: bool) -> None:
        super().__init__()
        self.conv, self.left, self.right = unit(3, 10), unit(5, 6), unit(5, 7)
        self.head = Head(6 if join else 13)
        self.pieces, self.join = pieces, join

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pieces(self.conv(x))
        if self.join:
            return self.head(self.left(a * torch.sigmoid(b)))
        return self.head(torch.cat((self.left(a), self.right(b)), dim=1))


class PixelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle, self.last, self.head = unit(3, 12), nn.PixelShuffle(2), unit(3, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.shuffle(self.conv(x))))


class LayerScale(nn.Module):
    """A residual branch scaled by a bare parameter, and a shift for each place and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = unit(3, 6), nn.Conv2d(6, 6, 3, padding=1), Head(6)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.place = nn.Parameter(torch.ones(1, 6, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.place
        return self.head(x + self.scale * self.branch(x))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = unit(3, 8, stride=2), nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False)
        self.grouped, self.head = nn.ConvTranspose2d(6, 4, 3, groups=2), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.up(self.down(x))))))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = unit(3, 6), nn.Conv2d(6, 6, 3, padding=1), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.shared(F.relu(self.shared(x)))))


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = unit(3, 6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.free, self.head = unit(6, 7), Head(7)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.free(F.relu(self.b(F.relu(self.a(self.stem(x)))))))


class Sequence1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.act = nn.Conv1d(2, 6, 3, dilation=2), nn.BatchNorm1d(6), nn.PReLU(6)
        self.b, self.linear = nn.Conv1d(6, 8, 3, stride=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.b(self.act(self.norm(self.a(x))))).mean(-1))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)
        self.b, self.linear = nn.Conv3d(4, 6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.norm(self.a(x)))))
        return self.linear(x.flatten(2).mean(2))


class Tokens(nn.Module):
    """Linear layers on channels that were moved last: with one row per place, and with a row of its own."""

    def __init__(self, fold: bool) -> None:
        super().__init__()
        self.conv, self.linear, self.last = unit(3, 6), nn.Linear(6, 7), nn.Linear(7, 5)
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        rows = F.relu(self.linear(x.reshape(-1, x.shape[-1]) if self.fold else x))
        return self.last(rows.reshape(-1, 36, rows.shape[-1]).mean(1))


class Normed(nn.Module):
    """Two convolutions with an operator between them that may mix channels."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.conv, self.operator, self.last, self.head = unit(3, 6), operator, unit(6, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.operator(self.conv(x))))


class ChannelsLast(nn.Module):
    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv, self.proj = unit(3, 6), nn.Linear(6, 24), nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + self.proj(torch.softmax(q @ k.transpose(1, 2), -1) @ v)
        return self.head(x.mean(1))


class UnusedHead(Flattened):
    """With weights that the forward never touches, and a literal size."""

    def __init__(self) -> None:
        super().__init__(literal=True)
        self.auxiliary, self.spare = nn.Linear(6, 2), nn.Parameter(torch.ones(3))


class SelfPadding(nn.Conv2d):
    """Pads its input as its size asks, as convolutions that were trained in TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        amount = (x.shape[-1] - 1) % 2 + 1
        return super().forward(F.pad(x, (0, amount, 0, amount)) if amount > 0 else x)


class NormAndActivation(nn.BatchNorm2d):
    """With its activation built in."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Variants(nn.Module):
    """Subclasses of torch's layers: a convolution that pads by itself, a norm with its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = SelfPadding(3, 8, 3, stride=2, bias=False), NormAndActivation(8)
        self.b, self.c, self.head = SelfPadding(8, 8, 3, stride=2, groups=8), SelfPadding(8, 7, 3), Head(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.norm(self.a(x)))))


class BySize(nn.Module):
    """Branches, loops and counts by the sizes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = unit(3, 6), unit(6, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[-1] % 4 != 0 and len(x.shape) == 4:
            x = F.pad(x, (0, int(x.shape[-1]) % 4))
        for _ in range(x.ndim - 3):
            x = self.b(x)
        return self.head(x)


class Untraceable(nn.Module):
    """One block looks at the values of its input; the others need not suffer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.block = unit(3, 6), unit(6, 7), nn.Sequential(unit(7, 5), Branching(5))
        self.last, self.head = unit(6, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.block(self.inner(self.stem(x)))))


class ScaledLast(nn.Module):
    """A residual branch scaled by a parameter that is brought into shape, beside a border that mirrors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = unit(3, 6), nn.Conv2d(6, 6, 3), Head(6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.branch(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        return self.head(x + inner.mul(self.scale.reshape(1, -1, 1, 1)))


class Branching(nn.Module):
    def __init__(self, cin: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if x.sum() > 0 else -x


class Example(NamedTuple):
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...] = (3, 6, 6)

    def model(self, seed: int = 0) -> nn.Module:
        return randomised(self.build(), seed)

    def images(self, count: int = 3, seed: int = 1) -> Tensor:
        return torch.randn((count, *self.input_shape), generator=torch.Generator().manual_seed(seed))


EXAMPLES = {
    "plain": Example(lambda: nn.Sequential(unit(3, 6), unit(6, 8, stride=2), Head(8))),
    "residual": Example(Residual),
    "blocks": Example(blocks),
    "padded": Example(lambda: ResNet(3, (4, 6, 10), 1, shortcut=PaddedShortcut), (3, 8, 8)),
    "projected": Example(lambda: ResNet(1, (4, 6, 10), 1, shortcut=ProjectedShortcut), (1, 8, 8)),
    "concat": Example(Dense),
    "depthwise": Example(Depthwise),
    "grouped": Example(Grouped),
    "grouped-pairs": Example(lambda: nn.Sequential(unit(3, 8), unit(8, 16, groups=4), unit(16, 6), Head(6))),
    "shuffled": Example(Shuffled),
    "shuffled-ungrouped": Example(lambda: Shuffled(groups=1)),
    "shuffled-constants": Example(ShuffledByConstants),
    "shuffled-module": Example(ShuffledByModule),
    "flatten": Example(lambda: Flattened(False)),
    "view-constant": Example(lambda: Flattened(True)),
    "squeeze-excite": Example(SqueezeExcite),
    "chunk-joined": Example(lambda: Halves(lambda x: x.chunk(2, dim=1), True)),
    "chunk-apart": Example(lambda: Halves(lambda x: torch.chunk(x, 2, 1), False)),
    "split-apart": Example(lambda: Halves(lambda x: torch.split(x, [5, 5], dim=1), False)),
    "slices": Example(lambda: Halves(lambda x: (x[:, :5], x[:, 5:]), False)),
    "slices-negative": Example(lambda: Halves(lambda x: (x[:, -5:], x[:, 0:-5, :, :]), True)),
    "pixel-shuffle": Example(PixelShuffled),
    "layer-scale": Example(LayerScale),
    "transposed": Example(Transposed, (3, 8, 8)),
    "called-twice": Example(CalledTwice),
    "tied-weights": Example(TiedWeights),
    "conv1d": Example(Sequence1d, (2, 16)),
    "conv3d": Example(Volume, (1, 6, 6, 6)),
    "mlp": Example(lambda: nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4)), (7,)),
    "one-channel": Example(lambda: nn.Sequential(unit(1, 6), unit(6, 1), unit(1, 4), Head(4)), (1, 6, 6)),
    "tokens": Example(lambda: Tokens(False)),
    "tokens-folded": Example(lambda: Tokens(True)),
    "softmax": Example(lambda: Normed(nn.Softmax(1))),
    "layer-norm": Example(lambda: Normed(ChannelsLast(nn.LayerNorm(6)))),
    "group-norm": Example(lambda: Normed(nn.GroupNorm(3, 6))),
    "attention": Example(Attention),
    "unused-head": Example(UnusedHead),
    "variants": Example(Variants, (3, 8, 8)),
    "by-size": Example(BySize),
    "untraceable-block": Example(Untraceable, (3, 8, 8)),
    "scaled-last": Example(ScaledLast),
    "bias-free": Example(lambda: nn.Sequential(bare(3, 6), bare(6, 8), Head(8, bias=False))),
}

# one of each structure: a chain, a sum, a sum with a padded shortcut, a concatenation, depthwise
# convolutions, and channels that are flattened into a linear layer
REPRESENTATIVES = ("plain", "residual", "padded", "concat", "depthwise", "flatten")
