"""The small residual networks of He et al. 2015 (section 4.2), with either kind of shortcut."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2015: every second pixel, zero channels on both sides; no parameters."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.pad = (cout - cin) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` [N, cin, H, W] as [N, cout, H/2, W/2]."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class ProjectedShortcut(nn.Sequential):
    """Option B of He et al. 2015: a 1x1 convolution of stride 2."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(nn.Conv2d(cin, cout, 1, stride=2, bias=False), nn.BatchNorm2d(cout))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, cin: int, cout: int, shortcut: nn.Module, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, cout, H/stride, W/stride]."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of blocks, global average pooling and a linear layer."""

    def __init__(
        self,
        cin: int,
        widths: tuple[int, int, int],
        blocks: int,
        *,
        shortcut: Callable[[int, int], nn.Module],
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, shortcut)
        self.layer2 = _stage(widths[0], widths[1], blocks, shortcut)
        self.layer3 = _stage(widths[1], widths[2], blocks, shortcut)
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images [N, cin, H, W]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(cin: int, cout: int, blocks: int, shortcut: Callable[[int, int], nn.Module]) -> nn.Sequential:
    changes = cin != cout
    first = ResidualBlock(cin, cout, shortcut(cin, cout) if changes else nn.Identity(), stride=1 + changes)
    rest = [ResidualBlock(cout, cout, nn.Identity(), stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
