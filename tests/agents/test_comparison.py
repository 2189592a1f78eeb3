"""The protocol of a fair comparison, on a small network."""

from dataclasses import replace

import pytest

from prunegym.agents import AgentError, load_policy, save_policy
from prunegym.agents.comparison import ComparisonConfig, compare
from prunegym.agents.episode_log import read_episodes
from prunegym.agents.learning.training import LearningConfig
from prunegym.envs import Budget, BudgetRange
from prunegym.pruning.errors import UnknownNameError
from tests.envs.conftest import make_small_env

QUICK = {
    "algorithm": "ppo",
    "episodes": 5,
    "learning": LearningConfig(hyperparameters={"policy_kwargs.net_arch": [8]}),
}


def test_no_method_may_spend_more_than_the_uniform_plan():
    env = make_small_env(budget={"macs": 0.5})
    found = compare(env, ComparisonConfig(**QUICK, baselines=("random", "sensitivity")))
    assert list(found.chosen) == ["uniform", "random", "sensitivity", "learned"]
    spent = found.chosen["uniform"].shares["macs"]
    assert spent < 0.5  # a budget that the uniform plan cannot use up would prove nothing
    assert env.problem.budget == Budget({"macs": env.problem.shares(found.chosen["uniform"].plan)["macs"]})
    for result in [*found.chosen.values(), *found.candidates.values()]:
        assert result.shares["macs"] <= spent


def test_each_method_has_as_many_evaluations_and_all_are_on_file(tmp_path):
    compare(make_small_env(), ComparisonConfig(**QUICK, baselines=("random", "hill-climbing")), out=tmp_path)
    authors = [episode.by for episode in read_episodes(tmp_path / "episodes.jsonl")]
    assert authors == ["ppo"] * 5 + ["random"] * 5 + ["hill-climbing"] * 5


def test_a_search_is_compared_under_its_own_name_and_once():
    found = compare(make_small_env(), ComparisonConfig("random", 4, baselines=("random", "sensitivity")))
    assert (found.name, found.learned) == ("random", None)
    assert list(found.chosen) == ["uniform", "sensitivity", "random"]


def test_the_policy_to_continue_from_is_a_candidate_and_validation_chooses(tmp_path, monkeypatch):
    env = make_small_env()
    learned = compare(env, ComparisonConfig(**QUICK, baselines=())).learned
    save_policy(learned.model, env, tmp_path, learned_on={})
    policy = load_policy(tmp_path, env)
    scores = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(type(env.problem), "validate", lambda self, plan: next(scores))
    learning = replace(QUICK["learning"], initial_policy=policy)
    config = ComparisonConfig(**{**QUICK, "learning": learning}, baselines=())
    found = compare(make_small_env(), config)
    assert list(found.candidates) == ["final", "best", "initial"]
    plans = [one.plan for one in found.candidates.values()]
    last = max(range(3), key=lambda i: plans.index(plans[i]))  # the last distinct plan, of highest score
    assert found.winner == list(found.candidates)[last]
    assert found.chosen["learned"].plan == plans[last]


def test_names_and_budgets_are_refused_before_any_evaluation(monkeypatch):
    env = make_small_env()
    monkeypatch.setattr(type(env.problem), "evaluate", lambda self, plan: pytest.fail("it was evaluated"))
    with pytest.raises(UnknownNameError, match="randon"):
        compare(env, ComparisonConfig(**QUICK, baselines=("randon",)))
    env.set_budget(BudgetRange(Budget({"macs": 0.4}), Budget({"macs": 0.6})))
    with pytest.raises(AgentError, match=r"within one budget, got the range macs=0\.4\.\.0\.6"):
        compare(env, ComparisonConfig(**QUICK))
