"""Runtime ratios decided for each input, group by group, while it flows through the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, gates_of
from prunegym.pruning.runtime.prices import InputPrices

PER_INPUT = "per_input"  # the submodule of a network's gates that decides for each input
MAX_CHANNEL_STDS = 5.0  # standard deviations from the mean that a channel counts as, at most
DIFFICULTY_RIDGE = 0.3  # penalty of the linear map that predicts losses, as a share of the images
SIGMOID_SLOPE = 1.7  # of the sigmoid that bounds a standardised statistic; it is then nearly its quantile


class InputSummary(NamedTuple):
    """Features of an input at a gate, [batch] each; observed in [0, 1], with 0.5 for a typical one.

    *Typical* are the calibration images at this gate under the plan.
    """

    share_above_threshold: Tensor  # share of units that score above the typical threshold
    level: Tensor  # mean score
    spread: Tensor  # of the scores
    best: Tensor  # highest score
    worst: Tensor  # lowest score
    energy: Tensor  # mean of the pooled input
    distance: Tensor  # how far the pooled input is from a typical one
    active: Tensor  # share of its channels above their means
    difficulty: Tensor  # predicted loss of this input, from its pooled input


# of an observation, in [0, 1] each and alike in any network: the share of the gated multiply-adds that lies
# behind, and that in this group; its runtime ratio in the plan; the cost so far against the plan's; the
# runtime ratio of the group before, 0 at the first; and the summary of the input
FEATURES = ("passed", "share", "planned", "spent", "last", *InputSummary._fields)


def find_per_input_policy(gates: RuntimeGates | None) -> PerInputPolicy | None:
    """Return the per-input policy of a network's gates; None if all inputs follow the plan."""
    policy = None if gates is None else gates._modules.get(PER_INPUT)
    return policy if isinstance(policy, PerInputPolicy) else None


def per_input_policy_of(model: nn.Module) -> PerInputPolicy:
    """Return the per-input policy of a network that has one."""
    ratios = find_per_input_policy(gates_of(model))
    assert ratios is not None
    return ratios


class PerInputPolicy(nn.Module):
    """A small policy network that sets every gate's runtime ratio for each input; one thread at a time.

    An action of 0 is the plan's ratio, -1 runs all units, 1 skips the largest share: the fixed plan is the
    policy that always says 0. Inputs may differ in what they cost; `offset`, added to every action, brings
    their mean to the budget. It works on the calibrated gates of a network that is cut.

    Args:
        sites: the sites of the network's gates, in execution order.
        prices: the prices of inputs.
        hidden: widths of the policy's layers, tanh between them.
        largest: the largest runtime ratio.
    """

    offset: Tensor
    _spent: Tensor  # gated multiply-adds of the images in flight, as a share of all of them, [batch]
    _last: Tensor  # their runtime ratio at the gate before, [batch]

    def __init__(
        self, sites: Sequence[GateSite], prices: InputPrices, *, hidden: Sequence[int], largest: float
    ) -> None:
        super().__init__()
        widths = [len(FEATURES), *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        last = nn.Linear(widths[-1], 1)
        nn.init.zeros_(last.weight)  # the plan, until something is learned
        nn.init.zeros_(last.bias)
        self.policy = nn.Sequential(*layers, last)
        self.typical = nn.ModuleList(InputStatistics(site.inputs) for site in sites)
        self.register_buffer("offset", torch.tensor(0.0))
        self.prices = prices
        self.units = [site.units for site in sites]
        self.planned = [1 - site.executed / site.units for site in sites]
        self.shares = prices.gate_shares(np.array(self.units)).tolist()
        self.largest = largest
        self.hidden = tuple(hidden)
        self.decided: list[Tensor] = []  # units that run for the images in flight, [batch], by gate so far
        self.action_override: Tensor | None = None  # actions [batch] that replace the policy's once

    @property
    def macs(self) -> int:
        """Multiply-adds for one image: of the policy at every gate, and of its observations."""
        policy = sum(layer.weight.numel() for layer in self.policy if isinstance(layer, nn.Linear))
        return policy * len(self.typical) + sum(
            self.typical_at(index).difficulty.numel() for index in range(len(self.typical))
        )

    def attach_(self, gates: RuntimeGates) -> None:
        """Let this policy set the counts of a network's gates for each image; it becomes their submodule."""
        for index, site in enumerate(gates.sites):
            gates.gate_for(site.group).count_of = partial(self.counts, index)
        gates.add_module(PER_INPUT, self)

    @torch.no_grad()
    def counts(self, index: int, pooled: Tensor, scores: Tensor) -> Tensor:
        """Decide a gate for the images in flight: int64 [batch]; see `CountOf`."""
        if index == 0:
            self._begin(pooled)
        action, self.action_override = self.action_override, None
        if action is None:
            action = self.policy(self.observe(index, pooled, scores))[:, 0]
        counts = self.decode(index, action)
        share = counts / self.units[index]
        self.decided.append(counts)
        self._spent = self._spent.add(share, alpha=self.shares[index])
        self._last = 1 - share
        return counts

    def decode(self, index: int, action: Tensor) -> Tensor:
        """Return the units that run at a gate, int64 [batch], for actions [batch]."""
        action = (action + self.offset).clamp_(-1, 1)
        planned, units = self.planned[index], self.units[index]
        # not two clamps of one tensor: onnxscript 0.7 merges their limits, and the file cannot be loaded
        fewer = action.relu()
        runs = (
            (action - fewer)
            .mul_(-planned * units)
            .sub_(fewer, alpha=(self.largest - planned) * units)
            .add_((1 - planned) * units + 0.5)
        )
        return runs.floor_().clamp_(1, units).long()

    def observe(self, index: int, pooled: Tensor, scores: Tensor) -> Tensor:
        """Return FEATURES of each image: [batch, features], float32."""
        if index == 0:
            self._begin(pooled)
        behind = self.shares[:index]
        planned_so_far = sum(
            share * (1 - ratio) for share, ratio in zip(behind, self.planned[:index], strict=True)
        )
        known = pooled.new_tensor([sum(behind), self.shares[index], self.planned[index]])
        spent = self._spent / planned_so_far if index else self._spent + 1
        way = torch.stack([0.5 + 2 * (spent - 1), self._last], dim=1).clamp(0, 1)
        summary = self.typical_at(index).summary(pooled, scores)
        return torch.cat([known.expand(pooled.size(0), -1), way, summary], dim=1).float()

    def cost(self) -> NDArray[np.float64]:
        """Return the cost of each image in flight, as a share of the dense multiply-adds: [batch]."""
        counts = torch.stack(self.decided, dim=1).cpu().numpy()
        return (self.prices.macs(counts) + self.macs) / self.prices.dense

    def ratios(self) -> NDArray[np.float64]:
        """Return the runtime ratios of the images in flight: [batch, gates]."""
        return 1 - torch.stack(self.decided, dim=1).cpu().numpy() / np.array(self.units)

    def load_policy_(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy a policy's weight and bias of each layer, in place."""
        linear = [layer for layer in self.policy if isinstance(layer, nn.Linear)]
        for own, (weight, bias) in zip(linear, layers, strict=True):
            own.weight.data.copy_(weight)
            own.bias.data.copy_(bias)

    def to_dict(self) -> dict[str, Any]:
        """Return all that is needed beside its tensors to build it anew, fit for JSON."""
        return {"hidden": list(self.hidden), "largest": self.largest, "prices": self.prices.to_dict()}

    @classmethod
    def from_dict(cls, sites: Sequence[GateSite], data: Mapping[str, Any]) -> PerInputPolicy:
        """Build a policy from what `to_dict` returned; its tensors are those of a new one.

        Raises:
            AttributeError, KeyError, TypeError, ValueError, OverflowError: it is no such data.
        """
        prices, hidden, largest = InputPrices.from_dict(data["prices"]), data["hidden"], data["largest"]
        if prices.gated.slopes.shape[2] != len(sites):
            raise ValueError(f"there are {len(sites)} gates, but prices of {prices.gated.slopes.shape[2]}")
        if not all(type(width) is int and width > 0 for width in hidden):
            raise ValueError(f"the policy cannot have layers of {hidden}")
        if not 0 <= largest < 1:
            raise ValueError(f"the largest runtime ratio must lie in [0, 1), got {largest!r}")
        return cls(sites, prices, hidden=hidden, largest=largest)

    def _begin(self, pooled: Tensor) -> None:
        self._spent = pooled.new_zeros(pooled.size(0))
        self._last = pooled.new_zeros(pooled.size(0))
        self.decided = []

    def typical_at(self, index: int) -> InputStatistics:
        """Return the statistics of typical inputs at a gate."""
        statistics = self.typical[index]
        assert isinstance(statistics, InputStatistics)
        return statistics

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the images in flight."""
        return {**self.__dict__, "decided": [], "action_override": None}


class InputStatistics(nn.Module):
    """Statistics of the calibration images at one gate, by which an input is standardised."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(inputs))  # these two standardise a pooled input
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("threshold", torch.zeros(()))  # that scores pass as often as the plan has units
        self.register_buffer("difficulty", torch.zeros(inputs))  # of a standardised pooled input
        # these two standardise the statistics, times SIGMOID_SLOPE
        self.register_buffer("gain", torch.ones(len(InputSummary._fields)))
        self.register_buffer("bias", torch.zeros(len(InputSummary._fields)))

    scale: Tensor
    shift: Tensor
    threshold: Tensor
    difficulty: Tensor
    gain: Tensor
    bias: Tensor

    @torch.no_grad()
    def fit_(self, pooled: Tensor, scores: Tensor, executed: int, losses: Tensor) -> None:
        """Fit the statistics, in place.

        Args:
            pooled: pooled inputs of the calibration images, [images, inputs].
            scores: scores of the gate's units, [images, units].
            executed: units that run in the plan.
            losses: losses of the images at the network's output, [images], larger for harder ones.
        """
        self.scale.copy_(1 / pooled.std(0).clamp_min(1e-6))
        self.shift.copy_(-pooled.mean(0) * self.scale)
        falling, passing = scores.flatten().sort(descending=True).values, executed * len(scores)
        # between two scores: on one, rounding would decide whether that image passes
        self.threshold.copy_(falling[passing - 1 : passing + 1].mean())
        z = self._standardised(pooled).double()
        penalty = DIFFICULTY_RIDGE * len(z) * torch.eye(z.size(1), dtype=z.dtype, device=z.device)
        self.difficulty.copy_(torch.linalg.solve(z.T @ z + penalty, z.T @ (losses - losses.mean()).double()))
        statistics = self._statistics(pooled, scores)
        self.gain.copy_(SIGMOID_SLOPE / statistics.std(0).clamp_min(1e-6))
        self.bias.copy_(-statistics.mean(0) * self.gain)

    def summary(self, pooled: Tensor, scores: Tensor) -> Tensor:
        """Return the features of InputSummary: [batch, 9]."""
        return torch.addcmul(self.bias, self._statistics(pooled, scores), self.gain).sigmoid_()

    def _statistics(self, pooled: Tensor, scores: Tensor) -> Tensor:
        """Return the features of InputSummary before they are standardised: [batch, 9]."""
        z = self._standardised(pooled)
        spread, level = torch.std_mean(scores, dim=1, correction=0)
        worst, best = torch.aminmax(scores, dim=1)
        summary = InputSummary(
            share_above_threshold=(scores > self.threshold).to(z.dtype).mean(1),
            level=level,
            spread=spread,
            best=best,
            worst=worst,
            energy=z.mean(1),
            distance=z.norm(dim=1),
            active=(z > 0).to(z.dtype).mean(1),
            difficulty=z @ self.difficulty,
        )
        return torch.stack(summary, dim=1)

    def _standardised(self, pooled: Tensor) -> Tensor:
        return torch.addcmul(self.shift, pooled, self.scale).clamp_(-MAX_CHANNEL_STDS, MAX_CHANNEL_STDS)
