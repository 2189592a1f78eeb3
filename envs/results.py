"""What finished plans come to, as the plain data that ends an episode."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from prunegym.envs.reward import MIN_REFERENCE_LOSS, RewardTerms, Score
from prunegym.envs.scoring import PlanScorer
from prunegym.pruning.cost import Widths, plan_widths, widths_plan
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import PruningPlan

# from a plan, plain data, and the share of what uniform pruning loses that is expected of it (see
# `ExpectedLosses`), the share that it loses
LossPredictor: TypeAlias = Callable[[Mapping[str, Mapping[str, float]], float], float]


class EpisodeResults:
    """Scores finished plans against the uniform one, and remembers the least loss that was measured in full.

    Args:
        network: whose plans.
        scorer: scores them.
    """

    def __init__(self, network: PrunableNetwork, scorer: PlanScorer) -> None:
        self._network = network
        self._scorer = scorer
        self.forget_least()

    def forget_least(self) -> None:
        """Compare the plans to come among themselves alone, as where the budget changes."""
        self._least_share = math.inf  # of the results so far that are no estimates

    def result_for(self, widths: Widths, *, uniform: Widths, expected: float) -> dict[str, Any]:
        """Return the `episode_result` of a plan, see `LayerPruningEnv`.

        Args:
            widths: the plan's unit counts.
            uniform: those of the uniform plan within the same budget.
            expected: the share of that one's loss that the plan is expected to lose.
        """
        reference = self._reference(uniform)
        # as a share: the loss itself is always larger within a tighter budget
        to_beat = self._least_share * max(reference, MIN_REFERENCE_LOSS)
        score = self._scorer.score(widths, to_beat=to_beat)
        return self._noted(widths, RewardTerms(score, reference, expected))

    def full_result_for(self, widths: Widths, *, uniform: Widths) -> dict[str, Any]:
        """Return the `episode_result` of a plan that no episode decided, never an estimate."""
        reference = self._reference(
            uniform
        )  # first: the plan may be the uniform one, to be met by all images
        return self._noted(widths, RewardTerms(self._scorer.score(widths), reference))

    def remember(self, result: Mapping[str, Any]) -> None:
        """Take an `episode_result` as known, from an earlier run of the same task."""
        score = Score.from_parts(result["reward"])
        self._scorer.remember(self.widths(result["plan"]), score)
        self._note(RewardTerms(score, result["reward"]["reference"]))

    def widths(self, plan: Mapping[str, Mapping[str, float]]) -> Widths:
        """Return the unit counts that a plan, plain data, comes to.

        Raises:
            PlanError: the plan asks for what the network cannot do.
        """
        network = self._network
        return plan_widths(network.graph, PruningPlan.from_dict(plan), round_to=network.method.round_to)

    def with_predictions(self, predict: LossPredictor) -> SurrogateResults:
        """Return results of plans that nobody carries out, beside these."""
        return SurrogateResults(self._network, self._scorer, predict)

    def _noted(self, widths: Widths, terms: RewardTerms) -> dict[str, Any]:
        self._note(terms)
        return self._result(widths, self._plan(widths), terms)

    def _reference(self, uniform: Widths) -> float:
        return self._scorer.score(uniform, on_all=True).loss

    def _plan(self, widths: Widths) -> dict[str, dict[str, float]]:
        return widths_plan(self._network.graph, widths).to_dict()

    def _result(
        self, widths: Widths, plan: Mapping[str, Mapping[str, float]], terms: RewardTerms
    ) -> dict[str, Any]:
        cost = self._network.cost
        return {
            "plan": plan,
            "reward": terms.to_dict(),
            "accuracy": terms.score.accuracy,
            "macs": cost.macs(widths) / cost.macs(cost.dense),
            "params": cost.params(widths) / cost.params(cost.dense),
        }

    def _note(self, terms: RewardTerms) -> None:
        if not terms.score.estimated:
            self._least_share = min(self._least_share, terms.share)


class SurrogateResults(EpisodeResults):
    """Results of plans that nobody carries out: their losses are predicted, uniform pruning's is measured.

    Args:
        network: whose plans.
        scorer: measures uniform plans.
        predict: what any other plan loses.
    """

    def __init__(self, network: PrunableNetwork, scorer: PlanScorer, predict: LossPredictor) -> None:
        super().__init__(network, scorer)
        self._predict = predict

    def result_for(self, widths: Widths, *, uniform: Widths, expected: float) -> dict[str, Any]:
        """Return the `episode_result` that a plan is predicted to have."""
        plan, reference = self._plan(widths), self._reference(uniform)
        score = Score(self._predict(plan, expected) * max(reference, MIN_REFERENCE_LOSS), estimated=True)
        return self._result(widths, plan, RewardTerms(score, reference, expected))
