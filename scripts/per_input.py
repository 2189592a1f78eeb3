"""Learning to decide for each input: the plan, the policy and the weights in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunegym.agents.per_input.ppo import InputPolicy, learn_per_input
from prunegym.envs import InputPruningVectorEnv, Task
from prunegym.pruning.apply import Compressed
from prunegym.pruning.cost import plan_widths
from prunegym.pruning.data import Images, ImageSplits, joined
from prunegym.pruning.metrics import predictions
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import LayerDecision, PruningPlan
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.installing import attach_per_input_policy_, fit_input_statistics_
from prunegym.pruning.runtime.outcomes import input_outcomes, keep_budget_
from prunegym.pruning.runtime.per_input import PerInputPolicy, find_per_input_policy, per_input_policy_of
from prunegym.pruning.runtime.prices import InputPrices
from prunegym.pruning.training.finetuning import finetune_

COUNT_SPREAD = (
    0.25  # of counts among the images that weights are fitted to; on ResNet-20, 0 and 0.75 were worse
)
HIDDEN = (32, 32)
MAX_HELD_BYTES = 2**30  # of training images, which were drawn in no order, beside the reward images


@dataclass(frozen=True)
class Settings:
    """How a policy is learned."""

    share: float  # of the dense multiply-adds, on average over inputs
    largest: float  # runtime ratio
    episodes: int  # inputs, in each round
    rounds: int
    tuning: int  # epochs of fine-tuning after each round
    seed: int
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class LearnedPerInput:
    """A network that decides for each input."""

    compressed: Compressed
    plan: PruningPlan  # that it departs from
    policies: list[InputPolicy]  # of the rounds
    share: float  # of the dense multiply-adds that inputs were to cost on average
    mean_share: float  # that validation images do


class PerInputJob:
    """A task's network with the images that decide about it."""

    def __init__(self, task: Task, network: PrunableNetwork) -> None:
        self.task = task
        self.network = network
        splits = task.splits
        if isinstance(splits, ImageSplits):
            self.learned_on = _learned_on(splits)
            self.typical, self.tuned_on = splits.calibration, splits.all_but_test()
        else:
            self.learned_on = self.typical = self.tuned_on = splits.reward

    def dense_logits(self, images: Images) -> Tensor:
        """Return what the dense network says of images: [N, classes]."""
        return predictions(self.task.model, images.batches())[0]

    def applied(
        self, plan: PruningPlan, *, counts: Mapping[str, Tensor] | None = None, tuning: int = 0
    ) -> Compressed:
        """Return the network, cut and gated by a plan and fine-tuned for some epochs; see `apply_plan`."""
        found = self.network.apply(plan, counts=counts)
        if tuning:
            self.tune_(found, tuning)
        return found

    def varied_counts(self, plan: PruningPlan) -> dict[str, Tensor]:
        """Return counts that differ among the calibration images, by COUNT_SPREAD about those of a plan.

        Weights that were fitted to one count serve no other, not even that of all units. An image is given
        more, or less, by all gates alike.
        """
        widths = plan_widths(self.network.graph, plan, round_to=self.network.method.round_to)
        images = sum(map(len, self.network.calibration.inputs.batches))
        order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
        share = 1 + COUNT_SPREAD * (2 * (order + 0.5) / images - 1)
        return {
            group.name: (runs * share + 0.5).floor().clamp(1, kept).long()
            for group, kept, runs in zip(
                self.network.graph.prunable, widths.kept.tolist(), widths.executed.tolist(), strict=True
            )
            if runs < kept
        }

    def tune_(self, compressed: Compressed, epochs: int, seed: int = 0) -> None:
        """Have weights and gates follow the dense network, in place; what decides for each input stays."""
        finetune_(compressed.model, self.tuned_on, teacher=self.task.model, epochs=epochs, seed=seed)
        if find_per_input_policy(gates_of(compressed.model)) is not None:
            images = self.typical.images.to(next(compressed.model.parameters()).device)
            fit_input_statistics_(compressed.model, images, self.dense_logits(self.typical))

    def install_(self, compressed: Compressed, largest: float) -> None:
        """Have the network decide for each input; at first it decides as its plan says."""
        attach_per_input_policy_(
            compressed.model,
            self.typical.images.to(next(compressed.model.parameters()).device),
            self.dense_logits(self.typical),
            prices=InputPrices.from_cost(self.network.cost, compressed.widths),
            hidden=HIDDEN,
            largest=largest,
        )

    def least_share(self, compressed: Compressed, largest: float) -> float:
        """Return the share of the dense multiply-adds that is left if inputs skip all they may."""
        prices = InputPrices.from_cost(self.network.cost, compressed.widths)
        ratios = PerInputPolicy(compressed.gates, prices, hidden=HIDDEN, largest=largest)
        most = torch.ones(1)
        counts = torch.stack([ratios.decode(number, most) for number in range(len(compressed.gates))], dim=1)
        return float(prices.macs(counts.numpy())[0] + ratios.macs) / prices.dense

    def environment(self, compressed: Compressed, share: float) -> InputPruningVectorEnv:
        """Return the environment in which inputs are decided."""
        device = next(compressed.model.parameters()).device
        return InputPruningVectorEnv(
            compressed.model,
            images=self.learned_on.images.to(device),
            dense_logits=self.dense_logits(self.learned_on),
            budget=share,
        )


def _learned_on(splits: ImageSplits) -> Images:
    """Return the images that a policy is learned on, all in memory: as many as MAX_HELD_BYTES allow."""
    reward = Images(splits.reward.images, splits.reward.labels)
    numbers = torch.arange(min(len(splits.train), MAX_HELD_BYTES // reward.images[0].nbytes))
    return joined(Images(splits.train.take(numbers), splits.train.labels[numbers]), reward)


def learn_ratios(
    job: PerInputJob,
    plan: PruningPlan,
    settings: Settings,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_update: Callable[[dict[str, float]], None] | None = None,
) -> LearnedPerInput:
    """Learn a policy in rounds, each with weights and gates that are made for what the last one does.

    A round carries the plan out, with weights fitted to varying counts, and learns a policy on top of it. The
    policy's mean ratios are the runtime ratios of the next round's plan. With fine-tuning the plan stays, and
    each round goes on with the network that the last one has tuned, as in Chen et al. 2020.

    Args:
        job: the network.
        plan: static ratios, which stay, and runtime ratios to depart from.
        settings: how.
        out: the folder of the run, which keeps checkpoints and curves; None for none.
        resume: go on with what `out` keeps.
        progress: show bars on standard error.
        on_update: called with the record of each update, its `round` among it.
    """
    policies: list[InputPolicy] = []
    compressed = job.applied(plan, counts=job.varied_counts(plan))
    for number in range(1, settings.rounds + 1):
        if number > 1 and not settings.tuning:
            plan = mean_plan(job, compressed, plan)
            compressed = job.applied(plan, counts=job.varied_counts(plan))
        job.install_(compressed, settings.largest)
        policies.append(
            learn_per_input(
                job.environment(compressed, settings.share),
                episodes=settings.episodes,
                seed=settings.seed + number,  # or a round on the same plan would repeat the one before
                hyperparameters=settings.hyperparameters,
                tensorboard_log=out / "tensorboard" / f"round-{number}" if out else None,
                progress=progress,
                on_update=_numbered(on_update, number),
                checkpoint=out / "checkpoint" / f"round-{number}" if out else None,
                resume=resume,
            )
        )
        per_input_policy_of(compressed.model).load_policy_(policies[-1].layers)
        if settings.tuning:
            job.tune_(compressed, settings.tuning, settings.seed)
        mean = keep_budget_(compressed.model, job.task.splits.validation, settings.share)
    return LearnedPerInput(compressed, plan, policies, settings.share, mean)


def _numbered(
    on_update: Callable[[dict[str, float]], None] | None, number: int
) -> Callable[[dict[str, float]], None] | None:
    if on_update is None:
        return None
    return lambda record: on_update({"round": number, **record})


def mean_plan(job: PerInputJob, compressed: Compressed, plan: PruningPlan) -> PruningPlan:
    """Return the plan whose runtime ratios are the means of what a network decides for its inputs."""
    means = input_outcomes(compressed.model, job.typical).ratios.mean(0)
    for site, ratio in zip(compressed.gates, means, strict=True):
        decision = LayerDecision(plan[site.group].static_ratio, min(float(ratio), 0.99))
        plan = plan.with_decision(site.group, decision)
    return plan
