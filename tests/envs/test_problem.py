import numpy as np
import pytest
import torch

from prunegym.envs import Budget, BudgetRange, ProblemConfig, PruningProblem, make_env
from prunegym.pruning.errors import DataError, UnknownNameError
from prunegym.pruning.plan import CompressionPlan
from tests.envs.conftest import labelled, make_small_env

TIGHT, LOOSE = Budget({"macs": 0.4}), Budget({"macs": 0.8})


def drawn(budget):
    """A problem whose plans are scored on 16 of 96 images, drawn for each."""
    model, images, labels = labelled("residual", count=96)
    return PruningProblem.from_model(
        model,
        calibration=[(images[:24], labels[:24])],
        reward=[(images, labels)],
        budget=budget,
        config=ProblemConfig(drawn_images=16),
    )


def error_of_a_draw(problem, anchored_by):
    """How far a draw scores the problem's uniform plan from all images, relative, with another's anchor."""
    model = problem.network.apply(CompressionPlan(problem.allocation("uniform"))).model
    objective = anchored_by.results._scorer._objective
    by_draw, on_all = (objective(model, to_beat=0.0, known=[], draw=draw).loss for draw in (3, None))
    return abs(by_draw / on_all - 1)


def test_draws_are_anchored_at_the_uniform_plan_of_the_budget_in_force():
    """No draw errs about the anchor itself; the anchor of the first budget used to stay for good."""
    first = drawn(TIGHT)
    assert error_of_a_draw(first, anchored_by=first) < 0.01
    second = first.with_budget(LOOSE)
    assert error_of_a_draw(second, anchored_by=second) < 0.01
    assert error_of_a_draw(second, anchored_by=first) > 0.1  # what it was


def test_a_range_is_anchored_at_the_uniform_plan_of_its_tightest_budget():
    problem = drawn(BudgetRange(TIGHT, LOOSE))
    assert error_of_a_draw(problem, anchored_by=problem) < 0.01
    assert error_of_a_draw(problem.with_budget(TIGHT), anchored_by=problem) < 0.01


def test_another_budget_shares_what_is_known_and_leaves_the_problem_as_it_was():
    problem = make_small_env(budget={"macs": 0.4}).problem
    before = problem.evaluate(problem.allocation("uniform"))
    other = problem.with_budget(LOOSE)
    assert (problem.budget, other.budget) == (TIGHT, LOOSE)
    assert other.network is problem.network
    assert other.baselines is problem.baselines
    assert other.results is not problem.results
    assert problem.evaluate(problem.allocation("uniform")) == before
    assert other.with_budget(TIGHT).evaluate(problem.allocation("uniform")) == before


def test_a_surrogate_never_changes_the_environment_that_it_came_from():
    env = make_small_env(budget=BudgetRange(TIGHT, LOOSE))
    env.reset(seed=0)
    state = env.episode_state()
    surrogate = env.surrogate_env(lambda plan, expected: 0.5)
    surrogate.reset(seed=5)
    for _ in env.site_names:
        *_, info = surrogate.step(np.array([0.0, 1.0], dtype=np.float32))
    assert info["episode_result"]["reward"]["estimated"] == 1.0
    assert env.episode_state() == state
    assert env.problem.results is not surrogate.problem.results
    assert surrogate.problem.network is env.problem.network


def test_an_unknown_setting_is_refused_with_the_nearest_name():
    model, images, labels = labelled("plain")
    given = {"calibration": [(images, labels)], "reward": [(images, labels)], "budget": {"macs": 0.5}}
    with pytest.raises(UnknownNameError, match=r"no setting of a pruning problem named 'protct'.*'protect'"):
        make_env(model=model, **given, protct=("stem*",))
    with pytest.raises(DataError, match=r"name a task, or give a model"):
        make_env(**given)


def test_settings_by_name_are_those_of_the_config():
    model, images, labels = labelled("plain")
    given = {"calibration": [(images, labels)], "reward": [(images, labels)], "budget": {"macs": 0.9}}
    problem = make_env(model=model, **given, protect=("1.0",), seed=7).problem
    assert (problem.config.protect, problem.config.seed) == (("1.0",), 7)
    assert "1.0" not in problem.site_names


def test_the_model_is_never_changed():
    model, images, labels = labelled("residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    problem = PruningProblem.from_model(
        model, calibration=[(images, labels)], reward=[(images, labels)], budget={"macs": 0.5}
    )
    problem.evaluate(problem.allocation("uniform"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
