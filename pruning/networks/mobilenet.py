"""MobileNetV2 (Sandler et al. 2018) for 32 x 32 pixels: a stem and a second stage without stride."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = (  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
STEM, LAST = 32, 1280


def _unit(cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, convolve each channel alone, project; a shortcut where shapes allow it."""

    def __init__(self, cin: int, cout: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        inner = cin * expansion
        expand = [_unit(cin, inner, 1)] if expansion > 1 else []
        depthwise = _unit(inner, inner, 3, stride=stride, groups=inner)
        self.conv = nn.Sequential(
            *expand, depthwise, nn.Conv2d(inner, cout, 1, bias=False), nn.BatchNorm2d(cout)
        )
        self.has_shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, cout, H/stride, W/stride]."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem, seven stages of inverted residuals, a wide 1x1 convolution, pooling and a linear layer."""

    def __init__(self, *, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, STEM, 3)]
        cin = STEM
        for expansion, cout, blocks, first in STAGES:
            for i in range(blocks):
                stride = first if i == 0 else 1
                layers.append(InvertedResidual(cin, cout, expansion=expansion, stride=stride))
                cin = cout
        layers.append(_unit(cin, LAST, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(LAST, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images [N, 3, H, W]."""
        return self.classifier(self.features(x).mean((2, 3)))
