"""Learn runtime ratios for each input in rounds: fit weights and gates, learn a policy, update the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunegym.agents.per_input.ppo import InputPolicy, PerInputRecording, learn_per_input
from prunegym.envs import InputPruningVectorEnv, Limits, Task, evenly_gated, static_plan
from prunegym.envs.budget_projection import rounded_up
from prunegym.pruning.apply import Compressed
from prunegym.pruning.data import Images, ImageSplits, joined
from prunegym.pruning.errors import ImpossibleBudgetError, PlanError
from prunegym.pruning.metrics import predictions
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.installing import attach_per_input_policy_, fit_input_statistics_
from prunegym.pruning.runtime.outcomes import input_outcomes, keep_budget_
from prunegym.pruning.runtime.per_input import PerInputPolicy, find_per_input_policy, per_input_policy_of
from prunegym.pruning.techniques import TECHNIQUES
from prunegym.pruning.training.finetuning import FinetuningConfig, finetune_

COUNT_SPREAD = (
    0.25  # relative spread of the unit counts that weights are fitted to; see docs/decisions.md, D61
)
HIDDEN = (32, 32)  # layer widths of the policy network
MAX_HELD_BYTES = 2**30  # of training images held in memory, besides the reward images


@dataclass(frozen=True)
class RoundsConfig:
    """Settings of learning a policy for inputs in rounds."""

    episodes: int  # inputs in each round
    rounds: int = 2
    tune_epochs: int = 0  # epochs of fine-tuning after each round
    max_runtime_ratio: float = 0.9
    seed: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LearnedPerInput:
    """A network with a learned policy that decides for each input."""

    compressed: Compressed
    plan: CompressionPlan  # whose runtime ratios the policy started from
    policies: list[InputPolicy]  # one for each round
    share: float  # share of the dense multiply-adds that inputs may cost on average
    mean_share: float  # share of the dense multiply-adds that validation images cost on average


class PerInputJob:
    """A task's network, with the images for learning a policy, for statistics and for fine-tuning."""

    def __init__(self, task: Task, network: PrunableNetwork) -> None:
        self.task = task
        self.network = network
        splits = task.splits
        if isinstance(splits, ImageSplits):
            # the reward images and as many training images as MAX_HELD_BYTES allows, all in memory
            reward = Images(splits.reward.images, splits.reward.labels)
            indices = torch.arange(min(len(splits.train), MAX_HELD_BYTES // reward.images[0].nbytes))
            train = Images(splits.train.take(indices), splits.train.labels[indices])
            self.learned_on = joined(train, reward)
            self.typical, self.tuned_on = splits.calibration, splits.all_but_test()
        else:
            self.learned_on = self.typical = self.tuned_on = splits.reward

    def dense_logits(self, images: Images) -> Tensor:
        """Return the dense network's logits: [N, classes]."""
        return predictions(self.task.model, images.batches())[0]

    def apply(
        self, plan: CompressionPlan, *, counts: Mapping[str, Tensor] | None = None, tune_epochs: int = 0
    ) -> Compressed:
        """Return the network compressed by a plan and fine-tuned for some epochs; see `apply_plan`."""
        compressed = self.network.apply(plan, counts=counts)
        if tune_epochs:
            self.tune_(compressed, tune_epochs)
        return compressed

    def varied_counts(self, plan: CompressionPlan) -> dict[str, Tensor]:
        """Return unit counts for each calibration image, spread by COUNT_SPREAD around those of a plan.

        Weights fitted to a single count do not suit any other, not even the count of all units. The counts of
        an image are above or below the plan's by the same factor at all gates.

        Returns:
            Group name -> counts, [calibration images], for the groups in which the plan skips units.
        """
        levels = self.network.space.levels(plan)
        images = sum(map(len, self.network.calibration.inputs.batches))
        order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
        share = 1 + COUNT_SPREAD * (2 * (order + 0.5) / images - 1)
        return {
            site.name: (executed * share + 0.5).floor().clamp(1, kept).long()
            for site, kept, executed in zip(
                self.network.space.sites, levels["channels"].tolist(), levels["gates"].tolist(), strict=True
            )
            if executed < kept
        }

    def tune_(self, compressed: Compressed, epochs: int, seed: int = 0) -> None:
        """Fine-tune weights and gates on the dense network's outputs, in place; keeps a per-input policy."""
        config = FinetuningConfig(epochs, seed=seed)
        finetune_(compressed.model, self.tuned_on, config, teacher=self.task.model)
        if find_per_input_policy(gates_of(compressed.model)) is not None:
            images = self.typical.images.to(next(compressed.model.parameters()).device)
            fit_input_statistics_(compressed.model, images, self.dense_logits(self.typical))

    def attach_policy_(self, compressed: Compressed, max_runtime_ratio: float) -> None:
        """Attach a per-input policy to the network, in place; at first it decides as the plan does."""
        attach_per_input_policy_(
            compressed.model,
            self.typical.images.to(next(compressed.model.parameters()).device),
            self.dense_logits(self.typical),
            prices=self.network.cost.input_prices(compressed.levels),
            hidden=HIDDEN,
            largest=max_runtime_ratio,
        )

    def min_share(self, compressed: Compressed, max_runtime_ratio: float) -> float:
        """Return the share of the dense multiply-adds that remains if inputs skip as much as possible."""
        prices = self.network.cost.input_prices(compressed.levels)
        policy = PerInputPolicy(compressed.gates, prices, hidden=HIDDEN, largest=max_runtime_ratio)
        action = torch.ones(1)
        counts = torch.stack([policy.decode(gate, action) for gate in range(len(compressed.gates))], dim=1)
        return float(prices.macs(counts.numpy())[0] + policy.macs) / prices.dense

    def environment(self, compressed: Compressed, share: float) -> InputPruningVectorEnv:
        """Return the environment for learning a policy within a share of the dense multiply-adds."""
        device = next(compressed.model.parameters()).device
        return InputPruningVectorEnv(
            compressed.model,
            images=self.learned_on.images.to(device),
            dense_logits=self.dense_logits(self.learned_on),
            budget=share,
        )


@dataclass(frozen=True)
class PerInputStart:
    """The validated starting point of the first round."""

    job: PerInputJob
    plan: CompressionPlan  # static ratios, which stay fixed, and initial runtime ratios
    fixed: Compressed  # the network compressed by that plan
    static: CompressionPlan  # the uniform plan without gates within the same share
    share: float  # share of the dense multiply-adds that inputs may cost on average; at most the plan's cost


@dataclass(frozen=True)
class PerInputComparison:
    """Networks of equal cost: dense, static, fixed and per-input ratios."""

    networks: Mapping[str, Compressed]  # "dense", "static", "fixed" and "per-input"
    learned: LearnedPerInput


def prepare(
    task: Task,
    network: PrunableNetwork,
    share: float,
    *,
    limits: Limits,
    static_ratio: float = 0.0,
    plan: CompressionPlan | None = None,
) -> PerInputStart:
    """Choose the initial plan, and check that inputs can meet a share of the multiply-adds.

    Inputs may cost no more than the fixed plan does, so that no row wins by spending more of the budget.

    Args:
        task: the images for learning the policy and for validation.
        network: the task's network, traced and calibrated.
        share: share of the dense multiply-adds that may remain, on average over inputs.
        limits: the largest static and runtime ratio of a site.
        static_ratio: static ratio of every group, if no plan is given.
        plan: the initial plan; by default even ratios within `share`, see `evenly_gated`.

    Raises:
        PlanError: a runtime ratio of the plan is above the largest, no group takes a gate, or the plan skips
            nothing, so that there is nothing to decide.
        ImpossibleBudgetError: the largest ratios are not enough, or inputs that skip as much as possible
            still cost more than `share`, the policy included.
    """
    largest = limits.of(TECHNIQUES["gates"])
    if plan is None:
        plan = evenly_gated(network, share, static_ratio=static_ratio, largest=largest)
    else:
        for name, decision in plan.decisions.items():
            if decision.get("runtime_ratio", 0.0) > largest:
                raise PlanError(
                    f"site {name!r}: a runtime_ratio of {decision['runtime_ratio']:g} is above the largest, "
                    f"{largest:g}; raise --max-runtime-ratio"
                )
    job = PerInputJob(task, network)
    fixed = job.apply(plan)
    if not fixed.gates:
        raise PlanError(
            "the plan skips nothing at run time, so there is nothing to decide for each input; "
            "give a smaller --budget or --static-ratio, or a --plan with runtime ratios"
        )
    smallest = job.min_share(fixed, largest)
    if smallest > share:
        raise ImpossibleBudgetError(
            f"macs={share:g} cannot be met: the smallest is {rounded_up(smallest)}, with runtime "
            f"ratios of {largest:g} at every gate of the plan; raise one of them, or the budget"
        )
    share = min(share, max(smallest, network.cost.shares(fixed.levels)["macs"]))
    static = static_plan(network, share, max_static_ratio=limits.of(TECHNIQUES["channels"]))
    return PerInputStart(job, plan, fixed, static, share)


def compare_with_fixed(
    start: PerInputStart,
    config: RoundsConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_update: Callable[[dict[str, float]], None] | None = None,
    on_learned: Callable[[], None] | None = None,
) -> PerInputComparison:
    """Learn runtime ratios for each input, and return the network with those to compare it with.

    The static and the fixed network are fine-tuned for as many epochs as the learned one in all its rounds.

    Args:
        start: the result of `prepare`; its fixed network is fine-tuned in place.
        config: settings of learning.
        out: see `learn_in_rounds`.
        resume: see `learn_in_rounds`.
        progress: see `learn_in_rounds`.
        on_update: see `learn_in_rounds`.
        on_learned: called after learning, before the other networks are fine-tuned.
    """
    learned = learn_in_rounds(
        start.job,
        start.plan,
        config,
        share=start.share,
        out=out,
        resume=resume,
        progress=progress,
        on_update=on_update,
    )
    if on_learned is not None:
        on_learned()
    epochs = config.rounds * config.tune_epochs
    if epochs:
        start.job.tune_(start.fixed, epochs, config.seed)
    networks = {
        "dense": start.job.apply(CompressionPlan()),
        "static": start.job.apply(start.static, tune_epochs=epochs),
        "fixed": start.fixed,
        "per-input": learned.compressed,
    }
    return PerInputComparison(networks, learned)


def learn_in_rounds(
    job: PerInputJob,
    plan: CompressionPlan,
    config: RoundsConfig,
    *,
    share: float,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_update: Callable[[dict[str, float]], None] | None = None,
) -> LearnedPerInput:
    """Learn a policy in rounds, in each of which weights and gates are fitted to the previous decisions.

    A round applies the plan, with weights fitted to varying unit counts, and learns a policy on that network.
    The policy's mean ratios are the runtime ratios of the next round's plan. With fine-tuning the plan stays
    the same, and each round continues with the network tuned in the previous one, as in Chen et al. 2020.

    Args:
        job: the network and its images.
        plan: static ratios, which stay fixed, and initial runtime ratios.
        config: settings of learning.
        share: share of the dense multiply-adds that inputs may cost on average.
        out: the folder of the run, which keeps checkpoints and curves; None for none.
        resume: continue from the checkpoints in `out`.
        progress: show bars on standard error.
        on_update: called with the record of each update, with the number of the round as "round".
    """
    policies: list[InputPolicy] = []
    compressed = job.apply(plan, counts=job.varied_counts(plan))
    for round_number in range(1, config.rounds + 1):

        def announce(record: dict[str, float], round_number: int = round_number) -> None:
            if on_update is not None:
                on_update({"round": round_number, **record})

        if round_number > 1 and not config.tune_epochs:
            plan = mean_plan(job, compressed, plan)
            compressed = job.apply(plan, counts=job.varied_counts(plan))
        job.attach_policy_(compressed, config.max_runtime_ratio)
        policies.append(
            learn_per_input(
                job.environment(compressed, share),
                episodes=config.episodes,
                seed=config.seed + round_number,  # or a round on the same plan would repeat the last one
                hyperparameters=config.hyperparameters,
                recording=PerInputRecording(
                    tensorboard=out / "tensorboard" / f"round-{round_number}" if out else None,
                    checkpoint=out / "checkpoint" / f"round-{round_number}" if out else None,
                    resume=resume,
                    progress=progress,
                    on_update=announce,
                ),
            )
        )
        per_input_policy_of(compressed.model).load_policy_(policies[-1].layers)
        if config.tune_epochs:
            job.tune_(compressed, config.tune_epochs, config.seed)
        mean_share = keep_budget_(compressed.model, job.task.splits.validation, share)
    return LearnedPerInput(compressed, plan, policies, share, mean_share)


def mean_plan(job: PerInputJob, compressed: Compressed, plan: CompressionPlan) -> CompressionPlan:
    """Return the plan with the runtime ratios that a network decides for its inputs, on average."""
    means = input_outcomes(compressed.model, job.typical).ratios.mean(0)
    for site, ratio in zip(compressed.gates, means, strict=True):
        decision = {**plan[site.group], "runtime_ratio": min(float(ratio), 0.99)}
        plan = plan.with_decision(site.group, decision)
    return plan
