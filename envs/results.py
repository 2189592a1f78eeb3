"""Scores of finished plans, each distinct plan evaluated once, as the plain data that ends an episode."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from prunegym.envs.objectives import Objective
from prunegym.envs.reward import MIN_REFERENCE_LOSS, RewardTerms, Score
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.technique import Levels

PlainPlan: TypeAlias = Mapping[str, Mapping[str, float]]  # site -> key of a technique -> amount
# (plan, expected relative loss) -> predicted relative loss; losses are relative to the uniform plan's
LossPredictor: TypeAlias = Callable[[PlainPlan, float], float]


class PlanScorer:
    """Applies plans and evaluates the compressed networks; scores are cached by plan.

    Args:
        network: the network that plans are applied to.
        objective: evaluates a compressed network.
    """

    def __init__(self, network: PrunableNetwork, objective: Objective) -> None:
        self._network = network
        self._objective = objective
        self._scores: dict[bytes, Score] = {}

    def score(self, levels: Levels, *, to_beat: float = math.inf, on_all: bool = False) -> Score:
        """Return the score of the plan with these levels.

        Args:
            levels: the plan's levels.
            to_beat: the loss of the best plan so far; for a plan that is clearly worse, the objective may
                return an estimate.
            on_all: evaluate a plan that is not in the cache on all reward images, where the objective would
                draw some.
        """
        key = self._key(levels)
        score = self._scores.get(key)
        if score is None or (score.estimated and score.loss <= to_beat):
            model = self._network.apply(self._network.space.plan(levels)).model
            draw = None if on_all else _draw_seed(key)
            score = self._objective(model, to_beat=to_beat, known=self._scores.values(), draw=draw)
            self._scores[key] = score
        return score

    def remember(self, levels: Levels, score: Score) -> None:
        """Put a score into the cache, from an earlier run of the same problem."""
        self._scores[self._key(levels)] = score

    def _key(self, levels: Levels) -> bytes:
        return b"".join(levels[technique.name].tobytes() for technique in self._network.space.staged)


def _draw_seed(key: bytes) -> int:
    """Return the seed of the images drawn for a plan: a function of the plan alone, the same everywhere."""
    return int.from_bytes(hashlib.sha256(key).digest()[:7], "big")


class EpisodeResults:
    """Turns finished plans into `episode_result` records, and keeps the smallest relative loss so far.

    Args:
        network: the network that plans are applied to.
        scorer: scores finished plans.
    """

    def __init__(self, network: PrunableNetwork, scorer: PlanScorer) -> None:
        self._network = network
        self._scorer = scorer
        self._min_share = math.inf  # smallest loss relative to the uniform plan's, estimates aside

    def result_for(self, levels: Levels, *, uniform: Levels, expected: float) -> dict[str, Any]:
        """Return the `episode_result` of a plan, see `LayerPruningEnv`.

        Args:
            levels: the plan's levels.
            uniform: levels of the even plan within the same budget.
            expected: the plan's expected loss as a share of the uniform plan's, see `ExpectedLosses`.
        """
        reference = self._reference(uniform)
        # relative losses compare across budgets; the loss itself is always larger within a tighter one
        to_beat = self._min_share * max(reference, MIN_REFERENCE_LOSS)
        return self._record(
            levels, RewardTerms(self._scorer.score(levels, to_beat=to_beat), reference, expected)
        )

    def full_result_for(self, levels: Levels, *, uniform: Levels) -> dict[str, Any]:
        """Return the `episode_result` of a plan that no episode decided, never an estimate."""
        reference = self._reference(uniform)  # first: the plan may be the uniform one, scored on all images
        return self._record(levels, RewardTerms(self._scorer.score(levels), reference))

    def remember(self, result: Mapping[str, Any]) -> None:
        """Put an `episode_result` into the cache, from an earlier run of the same problem."""
        score = Score.from_parts(result["reward"])
        self._scorer.remember(self.levels(result["plan"]), score)
        self._note(RewardTerms(score, result["reward"]["reference"]))

    def levels(self, plan: PlainPlan) -> Levels:
        """Return the levels of a plan.

        Raises:
            PlanError: the plan asks for what the network cannot do.
        """
        return self._network.space.levels(CompressionPlan(plan))

    def with_predictions(self, predict: LossPredictor) -> SurrogateResults:
        """Return results whose losses are predicted instead of measured, beside these."""
        return SurrogateResults(self._network, self._scorer, predict)

    def _reference(self, uniform: Levels) -> float:
        return self._scorer.score(uniform, on_all=True).loss

    def _record(self, levels: Levels, terms: RewardTerms) -> dict[str, Any]:
        self._note(terms)
        return {
            "plan": self._network.space.plan(levels).to_dict(),
            "reward": terms.to_dict(),
            "accuracy": terms.score.accuracy,
            "shares": self._network.cost.shares(levels),
        }

    def _note(self, terms: RewardTerms) -> None:
        if not terms.score.estimated:
            self._min_share = min(self._min_share, terms.share)


class SurrogateResults(EpisodeResults):
    """Results of plans that are never applied: their losses are predicted, the uniform plan's is measured.

    Args:
        network: the network that the plans are for.
        scorer: measures uniform plans.
        predict: predicts the relative loss of any other plan.
    """

    def __init__(self, network: PrunableNetwork, scorer: PlanScorer, predict: LossPredictor) -> None:
        super().__init__(network, scorer)
        self._predict = predict

    def result_for(self, levels: Levels, *, uniform: Levels, expected: float) -> dict[str, Any]:
        """Return the `episode_result` that is predicted for a plan."""
        plan, reference = self._network.space.plan(levels).to_dict(), self._reference(uniform)
        loss = self._predict(plan, expected) * max(reference, MIN_REFERENCE_LOSS)
        return self._record(levels, RewardTerms(Score(loss, estimated=True), reference, expected))
