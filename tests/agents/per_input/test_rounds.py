"""The rounds on a small residual network, from Python."""

from itertools import pairwise

import pytest
import torch

from prunegym.agents.per_input import rounds
from prunegym.agents.per_input.rounds import RoundsConfig, compare_with_fixed, mean_plan, prepare
from prunegym.envs import Budget, Limits, Task
from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.data import Images, ImageSplits
from prunegym.pruning.errors import ImpossibleBudgetError, PlanError
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.runtime.outcomes import input_outcomes
from tests.pruning.example_networks import EXAMPLES

LIMITS = Limits({"static_ratio": 0.9, "runtime_ratio": 0.9})
QUICK = RoundsConfig(episodes=32, hyperparameters={"n_epochs": 1, "episodes_per_update": 32})


@pytest.fixture(scope="module")
def task():
    example = EXAMPLES["residual"]
    model, images = example.model(), example.images(72, 1)
    with torch.no_grad():
        labels = model(images).argmax(1)
    sizes = [16, 16, 16, 12, 12]
    parts = [Images(*part) for part in zip(images.split(sizes), labels.split(sizes), strict=True)]
    splits = ImageSplits(*parts)
    spec = NetworkSpec("residual", example.model, images.shape[1:], (0.0,) * 3, (1.0,) * 3)
    calibration = real_images(model, [splits.calibration.images])
    return Task(spec, model, splits, calibration, Budget({"macs": 0.7}))


@pytest.fixture
def network(task):
    return PrunableNetwork(task.model, task.calibration)


def share_of(network, compressed):
    return network.cost.shares(compressed.levels)["macs"]


def test_inputs_are_to_cost_no_more_than_the_fixed_plan(task, network):
    start = prepare(task, network, 0.7, limits=LIMITS)
    assert start.share == share_of(network, start.fixed) <= 0.7
    static = network.apply(start.static)
    assert share_of(network, static) <= start.share
    assert not static.gates


def test_a_plan_that_is_given_is_the_one_to_start_from(task, network):
    plan = network.space.even_plan({"channels": 0.1, "gates": 0.4})
    assert prepare(task, network, 0.9, limits=LIMITS, plan=plan).plan is plan
    with pytest.raises(PlanError, match="above the largest"):
        prepare(task, network, 0.9, limits=Limits({"runtime_ratio": 0.3}), plan=plan)
    with pytest.raises(PlanError, match="skips nothing"):
        prepare(task, network, 0.9, limits=LIMITS, plan=network.space.even_plan({"channels": 0.1}))
    with pytest.raises(ImpossibleBudgetError, match="the smallest is 0"):
        prepare(task, network, 0.01, limits=LIMITS, plan=plan)


def test_each_round_starts_from_the_mean_of_the_last_and_all_rows_cost_the_same(task, network, monkeypatch):
    plans, seen, order = [], [], []

    def note(job, compressed, plan):
        plans.append(mean_plan(job, compressed, plan))
        return plans[-1]

    monkeypatch.setattr(rounds, "mean_plan", note)
    start = prepare(task, network, 0.7, limits=LIMITS, static_ratio=0.1)
    found = compare_with_fixed(
        start, QUICK, on_update=seen.append, on_learned=lambda: order.append(len(seen))
    )
    assert list(found.networks) == ["dense", "static", "fixed", "per-input"]
    assert [(one["round"], one["episodes"]) for one in seen] == [(1, 32), (2, 32)]
    assert order == [2]
    assert found.learned.plan == plans[-1] != start.plan
    assert {one["static_ratio"] for one in plans[-1].decisions.values()} == {0.1}
    assert found.learned.mean_share <= found.learned.share == start.share
    macs = input_outcomes(found.networks["per-input"].model, task.splits.test).macs
    assert macs.mean() == pytest.approx(start.share, rel=0.1)


def test_counts_vary_evenly_around_those_of_a_plan(task, network):
    job = prepare(task, network, 0.7, limits=LIMITS).job
    plan = network.space.even_plan({"gates": 0.5})
    gated = {group.name: group.units for group in network.graph.prunable if group.ungated is None}
    counts = job.varied_counts(plan)
    assert set(counts) == set(gated)
    for name, count in counts.items():
        assert len(count) == 16
        assert count.double().mean().item() == pytest.approx(gated[name] / 2, rel=0.1)
    widest, *others = counts.values()
    for first, second in pairwise(widest.argsort(stable=True).tolist()):
        assert all(other[first] <= other[second] for other in others)  # all gates of an image alike
