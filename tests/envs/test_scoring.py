import statistics
from functools import cache

import numpy as np
import pytest
import torch

from prunegym.envs import Budget, BudgetRange
from prunegym.envs.objectives import ImageObjective
from prunegym.envs.scoring import PlanScorer
from prunegym.pruning.errors import DataError
from tests.envs.conftest import labelled, make_small_env
from tests.pruning.plans import levels_of

BUDGETS = {
    "one budget": {"macs": 0.5},
    "a range": BudgetRange(Budget({"macs": 0.3}), Budget({"macs": 0.9})),
}
FIRST = 32


def make_env(**settings):
    _, images, labels = labelled("padded", count=160)
    return make_small_env(
        "padded", reward=list(zip(images.split(16), labels.split(16), strict=True)), **settings
    )


def result_of(env, actions):
    for action in actions:
        *_, info = env.step(action)
    return info["episode_result"]


def episodes(env, count=60, seed=0, start=0):
    """The results of a fixed list of episodes, every tenth as the one before it, from number `start`."""
    rng = np.random.default_rng(seed)
    listed = [rng.uniform(-1, 1, (len(env.site_names), 2)).astype(np.float32) for _ in range(count)]
    results = []
    for number in range(start, count):
        env.reset(seed=number)
        results.append(result_of(env, listed[number - (number % 10 == 9)]))
    return results


def estimated(results):
    return [one for one in results if one["reward"]["estimated"]]


def in_full(results):
    return [one for one in results if not one["reward"]["estimated"]]


def without(part, result):
    return {**result, "reward": {k: v for k, v in result["reward"].items() if k != part}}


def totals(results):
    return [one["reward"]["total"] for one in results]


@cache
def played(first, budget="one budget", goal="divergence"):
    """What a new environment makes of the episodes; not to be changed."""
    return episodes(make_env(first_images=first, budget=BUDGETS[budget], goal=goal))


@pytest.mark.parametrize("goal", ["divergence", "accuracy"])
@pytest.mark.parametrize("budget", list(BUDGETS))
def test_a_plan_that_is_only_estimated_is_never_the_best(budget, goal):
    results = played(FIRST, budget, goal)
    for done in range(1, len(results) + 1):
        full = totals(in_full(results[:done]))
        assert all(total < max(full) for total in totals(estimated(results[:done])))


@pytest.mark.parametrize("budget", list(BUDGETS))
def test_many_plans_are_only_estimated_and_the_best_is_found_all_the_same(budget):
    staged, full = played(FIRST, budget), played(None, budget)
    assert len(estimated(staged)) > 15
    assert max(totals(staged)) == max(totals(full))


def test_an_estimate_does_only_for_a_plan_above_the_loss_to_beat():
    env = make_env()
    _, images, labels = labelled("padded", count=160)
    objective = ImageObjective(
        env.problem.network.model, [(images, labels)], goal="divergence", first_images=FIRST
    )
    scorer = PlanScorer(env.problem.network, objective)
    rng, units = np.random.default_rng(0), env.problem.network.cost.dense["channels"]
    *others, plan = (levels_of(kept) for kept in rng.integers(1, units + 1, (20, len(units))))
    in_full = [scorer.score(other) for other in others]
    assert not any(score.estimated for score in in_full)
    guess = scorer.score(plan, to_beat=0.0)
    assert guess.estimated
    factors = [score.divergence / score.first_loss for score in in_full]
    factor = statistics.geometric_mean(factors)
    known = scorer.score(plan, to_beat=guess.divergence)
    assert not known.estimated
    assert guess.divergence == pytest.approx(known.first_loss * factor, rel=1e-3)
    assert scorer.score(plan, to_beat=0.0) == known


def test_what_is_scored_in_full_is_scored_as_in_one_stage_and_estimates_come_near():
    assert len(in_full(played(FIRST))) > 10
    for mine, theirs in zip(played(FIRST), played(None), strict=True):
        if mine["reward"]["estimated"]:
            assert mine["reward"]["divergence"] == pytest.approx(theirs["reward"]["divergence"], rel=0.5)
        else:
            assert without("first_loss", mine) == theirs


def test_the_first_loss_is_that_of_the_first_images():
    result = episodes(make_env(first_images=20), count=1)[0]
    model, images, _ = labelled("padded", count=160)
    with torch.no_grad():
        wanted = model(images[:20]).double().softmax(1)
        found = make_env().problem.apply(result["plan"])(images[:20]).double().softmax(1)
    loss = float((wanted * (wanted.log() - found.log())).sum(1).mean())
    assert result["reward"]["first_loss"] == pytest.approx(loss, rel=1e-4)


def test_an_evaluation_is_never_an_estimate():
    env = make_env(first_images=FIRST)
    results = episodes(env)
    guess = estimated(results)[-1]
    found = env.problem.evaluate(guess["plan"])
    number = results.index(guess)
    assert without("first_loss", found) == without("expected", played(None)[number])
    assert without("expected", episodes(env)[number]) == found  # what is known in full stays so


def test_the_first_plan_within_another_budget_is_scored_in_full():
    env = make_env(first_images=FIRST, budget=BUDGETS["one budget"])
    results = episodes(env)
    number = results.index(estimated(results)[-1])
    assert estimated(episodes(env, count=number + 1, start=number))
    env.set_budget(Budget(BUDGETS["one budget"]))
    assert in_full(episodes(env, count=number + 1, start=number))


def test_plans_that_are_remembered_are_not_carried_out_again(monkeypatch):
    results = episodes(make_env(), count=8)
    resumed, applied = make_env(), []
    resumed.reset()  # measures uniform pruning within the budget
    for result in results:
        resumed.remember(result)
    network = resumed.problem.network
    compress = network.apply
    monkeypatch.setattr(network, "apply", lambda plan: applied.append(plan) or compress(plan))
    assert episodes(resumed, count=8) == results
    assert len(applied) == 1  # the uniform plan, that the rewards refer to


@pytest.mark.parametrize("stopped", [5, 33, 50])
def test_an_interrupted_run_decides_on_what_to_score_as_if_it_had_gone_on(stopped):
    results = played(FIRST)
    resumed = make_env(first_images=FIRST)
    for result in results[:stopped]:
        resumed.remember(result)
    assert episodes(resumed, start=stopped) == results[stopped:]


def drawn_env(**settings):
    return make_env(drawn_images=20, **settings)


def test_drawn_scores_are_those_of_the_plan_wherever_and_whenever_it_is_scored():
    results = episodes(drawn_env(), count=12)
    assert episodes(drawn_env(), count=12, start=6) == results[6:]
    assert not estimated(results)


def test_drawn_scores_come_near_those_on_all_images_and_uniform_pruning_is_measured_on_all():
    drawn, full = episodes(drawn_env()), played(None)
    references = {one["reward"]["reference"] for one in drawn}
    assert len(references) == 1
    assert references.pop() == pytest.approx(full[0]["reward"]["reference"], rel=1e-5)
    ratios = [one["reward"]["loss"] / other["reward"]["loss"] for one, other in zip(drawn, full, strict=True)]
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.1)
    assert len({round(ratio, 3) for ratio in ratios}) > 30  # each has a draw of its own


@pytest.mark.parametrize("stopped", [3, 9])
@pytest.mark.parametrize("budget", list(BUDGETS))
def test_an_interrupted_run_on_draws_goes_on_as_if_it_had_not_been(budget, stopped):
    results = episodes(drawn_env(budget=BUDGETS[budget]), count=15)
    resumed = drawn_env(budget=BUDGETS[budget])
    for result in results[:stopped]:
        resumed.remember(result)
    assert episodes(resumed, count=15, start=stopped) == results[stopped:]


@pytest.mark.parametrize(
    "settings",
    [
        {"drawn_images": 8, "first_images": 4},
        {"drawn_images": 8, "goal": "accuracy"},
        {"drawn_images": 8, "reward": None, "score": lambda model: 1.0},
    ],
)
def test_images_are_chosen_in_one_way_only(settings):
    with pytest.raises(DataError, match=r"choose one|leave those out"):
        make_small_env("padded", **settings)


def test_uniform_pruning_is_measured_on_all_images_within_each_budget():
    drawn = episodes(drawn_env(budget=BUDGETS["a range"]), count=20)
    references = [one["reward"]["reference"] for one in drawn]
    assert len(set(references)) > 3
    expected = [one["reward"]["reference"] for one in played(None, "a range")[:20]]
    assert references == pytest.approx(expected, rel=1e-5)


def test_uniform_pruning_evaluated_by_itself_is_measured_on_all_images():
    env, whole = drawn_env(), make_env()
    even = env.problem.evaluate(env.problem.allocation("uniform"))
    assert even["accuracy"] == whole.problem.evaluate(whole.problem.allocation("uniform"))["accuracy"]
    assert even["reward"]["loss"] == even["reward"]["reference"]
