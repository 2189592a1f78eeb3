"""Per-input pruning as an episode: one step per gate, a batch of inputs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.pruning.metrics import divergences
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.gatewise import GatewiseExecution
from prunegym.pruning.runtime.per_input import FEATURES

INPUT_OBSERVATION_VERSION = 1
BATCH = 256  # images at once where all are looked at
PRICE_STEP = 0.25  # of an action, to either side of the plan, where the marginal price is measured
MIN_LOSS = 1e-6  # lower bound of the mean loss that rewards are divided by
Floats = NDArray[np.float32]


class InputPruningVectorEnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """Decide for each input, gate by gate, how many of the gate's units are skipped.

    ## Description
    An episode is one input's way through a network with runtime gates; each step sets the runtime ratio of
    the gate it comes to. Sub-environments are the inputs of a batch: they step together, one batched forward
    for each stretch of layers. Static ratios, and the runtime ratios to depart from, are those
    of the plan that the network was cut by.

    ## Action space
    Box(-1, 1, (1,), float32): 0 is the plan's runtime ratio, -1 runs every unit, 1 skips the largest share.

    ## Observation space
    Box(0, 1, (len(FEATURES),), float32): see FEATURES; of one size for any network.

    ## Rewards
    0 at every step but the last; there what skipping as the plan says would have lost on this input, minus
    what was lost, minus `price` times what the input's multiply-adds exceed the budget by:
    (reference - loss) / mean reference - price * (macs / budget - 1). The loss is the divergence of the
    output from the dense network's, softened; the budget is kept on average over inputs, not by each.

    ## Starting state
    Every reset takes the next inputs of a seeded order, a new one for each pass.

    ## Episode end
    The last gate terminates all episodes; the next inputs begin at once (`AutoresetMode.SAME_STEP`). The last
    step's infos hold, [batch] each, `macs` (shares of the dense network), `loss`, `reference` and `agrees`
    (whether the answer is the dense network's), and `ratios`, [batch, gates].

    ## Arguments
    See `__init__`. By name: `gym.make_vec("prunegym/InputPruning-v0", num_envs=256, model=..., ...)`.

    ## Version history
    v0: first version.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (as declared)
    observation_names: tuple[str, ...] = FEATURES
    observation_version = INPUT_OBSERVATION_VERSION

    def __init__(
        self,
        model: nn.Module,
        *,
        images: Tensor,
        dense_logits: Tensor,
        budget: float,
        num_envs: int = 256,
    ) -> None:
        """Prepare the images.

        Args:
            model: a network in evaluation mode whose gates have a PerInputPolicy; its policy takes no part.
            images: [N, ...], on its device, to learn from.
            dense_logits: the dense network's logits for them, [N, classes].
            budget: share of the dense network's multiply-adds that inputs may cost on average.
            num_envs: inputs side by side, at most all there are.
        """
        self._network = GatewiseExecution(model, tuple(images.shape[1:]))
        self._images = images
        self._wanted = dense_logits.log_softmax(1)
        self.budget = budget
        self.price = 0.0  # of the whole budget, in rewards
        self.num_envs = min(num_envs, len(images))
        gates = gates_of(model)
        assert gates is not None
        self.gate_names = tuple(site.group for site in gates.sites)
        self.single_observation_space = spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._reference, _ = self._all_at(0.0)
        self._unit = self._reference.mean().clamp_min(MIN_LOSS)  # of rewards
        self._order = np.empty(0, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Begin with the next inputs; with a seed, with the first of its order."""
        super().reset(seed=seed)
        if seed is not None:
            self._order = np.empty(0, np.int64)
        return self._begin(), {}

    def step(
        self, actions: Floats
    ) -> tuple[Floats, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Decide the gate that all inputs have come to."""
        self._step += 1
        result = self._network.step(torch.from_numpy(actions[:, 0]).to(self._images.device))
        no = np.zeros(self.num_envs, dtype=bool)
        if self._step < len(self.gate_names):
            return result.cpu().numpy(), np.zeros(self.num_envs), no, no, {}
        rewards, infos = self._outcome(result)
        return self._begin(), rewards, ~no, no, infos

    def episode_start(self) -> dict[str, Any]:
        """Return what the episodes at hand began from, as plain data."""
        return {**self._start, "price": self.price}

    def restart_from(self, state: Mapping[str, Any]) -> None:
        """Let the next `reset` begin where `episode_start` says."""
        self.np_random.bit_generator.state = state["random"]
        self._order = np.array(state["order"], dtype=np.int64)
        self.price = state["price"]

    def marginal_price(self) -> float:
        """Return the price at which inputs as a whole gain nothing by a little more or less skipping.

        By the losses and costs of all inputs at actions a little below and above the plan.
        """
        (dear, dear_macs), (cheap, cheap_macs) = (
            self._all_at(action) for action in (-PRICE_STEP, PRICE_STEP)
        )
        gain = float((cheap.mean() - dear.mean()) / self._unit)
        saved = (dear_macs - cheap_macs) / self.budget
        return max(0.0, gain / saved) if saved else 0.0  # gates of very few units round both alike

    def _begin(self) -> Floats:
        self._start = {
            "random": self.np_random.bit_generator.state,
            "order": self._order.tolist(),
        }
        if len(self._order) < self.num_envs:  # what does not fill a batch waits for another pass
            self._order = self.np_random.permutation(len(self._images))
        now, self._order = np.split(self._order, [self.num_envs])
        self._now = torch.from_numpy(now).to(self._images.device)
        self._step = 0
        return self._network.begin(self._images[self._now]).cpu().numpy()

    @torch.no_grad()
    def _all_at(self, action: float) -> tuple[Tensor, float]:
        """Return every image's loss if each gate's action were this one, [N], and the mean cost."""
        losses, macs = [], 0.0
        for images, wanted in zip(self._images.split(BATCH), self._wanted.split(BATCH), strict=True):
            result = self._network.begin(images)
            for _ in self.gate_names:
                result = self._network.step(images.new_full((len(images),), action))
            losses.append(loss(result, wanted))
            macs += float(self._network.ratios.cost().sum())
        return torch.cat(losses), macs / len(self._images)

    def _outcome(self, logits: Tensor) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Return the rewards and the infos of the inputs, from their logits."""
        wanted, reference = self._wanted[self._now], self._reference[self._now]
        lost = loss(logits, wanted)
        macs = self._network.ratios.cost()
        gain = ((reference - lost) / self._unit).double().cpu().numpy()
        infos = {
            "macs": macs,
            "loss": lost.cpu().numpy(),
            "reference": reference.cpu().numpy(),
            "agrees": (logits.argmax(1) == wanted.argmax(1)).cpu().numpy(),
            "ratios": self._network.ratios.ratios(),
        }
        return gain - self.price * (macs / self.budget - 1), infos


def loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return how far each output is from the dense network's: [batch], in [0, 1].

    Args:
        logits: [batch, classes].
        wanted: log-probabilities of the dense network, likewise.
    """
    # bounded: one hopeless input must not drown the others
    return -torch.expm1(-divergences(logits, wanted).clamp_min(0))
