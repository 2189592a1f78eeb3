"""A network for `benchmark coverage`: small images, and random weights under which every error shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.pruning.calibration.synthesis.noise import restandardised
from prunegym.pruning.errors import PruningError
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from prunegym.pruning.surgery.cutting import attempt
from prunegym.pruning.surgery.verification import in_double

SIDES = (64, 96, 128)  # pixels; the first at which a network runs, else its own
IMAGES = 4
TOLERANCE = 1e-4  # of the largest change; in double precision, what is right is below 1e-8
RATIO = 0.4  # of the units of every group that are cut


@dataclass(frozen=True)
class Subject:
    """A network with weights, and images for it."""

    spec: NetworkSpec  # with the size of the images
    model: nn.Module  # in evaluation mode
    images: Tensor  # [IMAGES, channels, height, width]


def load_subject(name: str, *, seed: int) -> Subject:
    """Return the network of that name.

    The statistics of its BatchNorms are those of noise, shaken; scales, many of which start at zero or one,
    are drawn anew, so that no block is muted and no wrong cut hidden.

    Raises:
        PruningError: there is no such network, or it runs at no size that is tried.
    """
    spec = resolve_network(name)
    torch.manual_seed(seed)
    model = spec.build().eval()
    own = spec.input_shape[-1]
    for side in (*SIDES, own) if "/" in name else (own,):
        sized = replace(spec, input_shape=(spec.input_shape[0], side, side))
        images = torch.randn(IMAGES, *sized.input_shape)
        try:
            with torch.no_grad():
                model(images[:2])
        except (AssertionError, RuntimeError, ValueError) as error:  # too small, or not what it was built for
            raise_machine_failure(error)
            continue
        return Subject(sized, _shaken(model, images), images)
    raise PruningError(f"{name} runs on noise of none of the sizes {SIDES}, nor of its own")


@torch.no_grad()
def _shaken(model: nn.Module, images: Tensor) -> nn.Module:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif parameter.dim() == 1 or bool((parameter == parameter.flatten()[0]).all()):
                parameter.copy_(0.5 + torch.rand_like(parameter))
    model = restandardised(model, images)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            variance = model.get_buffer(name.removesuffix("mean") + "var")
            buffer.add_(0.3 * variance.sqrt() * torch.randn_like(buffer))
            variance.mul_(0.5 + torch.rand_like(variance))
    return model


def precise(subject: Subject) -> tuple[nn.Module, Tensor]:
    """Return the network and its images in double precision, where it runs in that."""
    dense = in_double(subject.model, subject.spec.input_shape)
    return dense, subject.images.to(next(dense.parameters()).dtype)


@torch.no_grad()
def runs_as(model: nn.Module, dense: nn.Module, images: Tensor) -> tuple[bool, float]:
    """Return whether a pruned network gives what the dense one gives in shape, and its share of the MACs."""
    shapes, operations = [], []
    for network in (model, dense):
        with FlopCounterMode(display=False) as counter:
            shapes.append(attempt(network, images).shape)
        operations.append(counter.get_total_flops())
    return shapes[0] == shapes[1], operations[0] / operations[1]


def largest_error(value: Tensor, expected: Tensor, dense: Tensor) -> float | None:
    """Return how far a pruned network's output is from the one expected, as a share of what pruning changes.

    Args:
        value: output of the pruned network.
        expected: output of the dense network with the same channels silenced.
        dense: output of the dense network with all channels.

    Returns:
        The largest difference over the largest change; None if either is not finite, or nothing changes.
    """
    error = (value - expected).abs().max() / (expected - dense).abs().max()
    return float(error) if math.isfinite(error) else None
