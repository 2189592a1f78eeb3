"""How the plans of a problem are scored: on images, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from prunegym.envs.objectives import (
    DrawnImagesObjective,
    FunctionObjective,
    Goal,
    ImageObjective,
    ImagePool,
    first_batches,
)
from prunegym.envs.results import PlanScorer
from prunegym.pruning.data import checked
from prunegym.pruning.errors import DataError
from prunegym.pruning.metrics import ScoreFunction, accuracy, predictions, scored
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.technique import Levels

N_LOO_IMAGES = 128  # a group's share of a loss needs fewer images than the loss itself


class Scoring(Protocol):
    """Scores the plans of one network."""

    loo_scorer: PlanScorer  # for leave-one-out gains, see `UniformBaseline`

    def plan_scorer(self, anchor: Levels) -> PlanScorer:
        """Return the scorer of finished plans; it is the same object for an equal anchor.

        Args:
            anchor: levels of the even plan, whose losses say how hard drawn images are.
        """

    def validate(self, model: nn.Module) -> float:
        """Return the score by which one of several finished networks is chosen; higher is better."""


class ImageScoring:
    """Scores plans on reward images, and chooses among finished ones on validation images.

    Args:
        network: the network that plans are applied to.
        reward: batches of normalised images and labels.
        validation: likewise; the reward images where there are none.
        goal: the loss, see `ImageObjective`.
        first_images: score plans on so many images first, see `ImageObjective`.
        drawn_images: score each plan on so many images, drawn for it, see `DrawnImagesObjective`.

    Raises:
        DataError: there is no image, or the images are to be chosen in two ways.
    """

    def __init__(
        self,
        network: PrunableNetwork,
        reward: Iterable[tuple[Tensor, Tensor]],
        validation: Iterable[tuple[Tensor, Tensor]] | None,
        *,
        goal: Goal = "divergence",
        first_images: int | None = None,
        drawn_images: int | None = None,
    ) -> None:
        if drawn_images is not None and (first_images is not None or goal != "divergence"):
            raise DataError("drawn images go with divergence, and not with first images; choose one")
        dense, reward = network.model, list(checked(reward, "reward"))
        self._network = network
        self._pool: ImagePool | None = None
        self._scorers: dict[bytes, PlanScorer] = {}
        if drawn_images is not None:
            self._pool = ImagePool(dense, reward, drawn=drawn_images)
        else:
            objective = ImageObjective(dense, reward, goal=goal, first_images=first_images)
            self._scorer = PlanScorer(network, objective)
        few = ImageObjective(dense, first_batches(reward, N_LOO_IMAGES)[0], goal="divergence")
        self.loo_scorer = PlanScorer(network, few)
        self._validation = reward if validation is None else list(checked(validation, "validation"))

    def plan_scorer(self, anchor: Levels) -> PlanScorer:
        """Return the scorer of finished plans, see `Scoring`; only drawn images depend on the anchor."""
        if self._pool is None:
            return self._scorer
        key = b"".join(of_sites.tobytes() for of_sites in anchor.values())
        if key not in self._scorers:
            plan = self._network.space.plan(anchor)
            objective = DrawnImagesObjective(self._pool, anchor=lambda: self._network.apply(plan).model)
            self._scorers[key] = PlanScorer(self._network, objective)
        return self._scorers[key]

    def validate(self, model: nn.Module) -> float:
        """Return a network's accuracy on the validation images."""
        return accuracy(*predictions(model, self._validation))


class FunctionScoring:
    """Scores plans by a function of the user's, which also chooses among finished ones.

    Args:
        network: the network that plans are applied to.
        function: the score of a network, higher is better; see `FunctionObjective`.

    Raises:
        DataError: see `scored`.
    """

    def __init__(self, network: PrunableNetwork, function: ScoreFunction) -> None:
        self._function = function
        self.loo_scorer = PlanScorer(network, FunctionObjective(function, network.model))

    def plan_scorer(self, anchor: Levels) -> PlanScorer:
        """Return the scorer of finished plans, whatever the anchor."""
        return self.loo_scorer

    def validate(self, model: nn.Module) -> float:
        """Return a network's score."""
        return scored(self._function, model)
