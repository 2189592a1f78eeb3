"""Policies for reuse, from Python."""

import logging

import pytest
import torch

from prunegym.agents import BUILTIN, AgentError
from prunegym.agents.reuse import (
    apply_policy,
    load_initial_policy,
    plans_within,
    policy_folder,
    shared_env,
)
from prunegym.envs import Budget, BudgetRange, MultiNetworkEnv
from prunegym.pruning.plan import CompressionPlan
from tests.agents.conftest import learn
from tests.envs.conftest import make_small_env


def test_one_network_needs_no_turns():
    env = make_small_env()
    assert shared_env({"one": env}) is env
    both = shared_env({"one": env, "other": make_small_env("plain")})
    assert isinstance(both, MultiNetworkEnv)
    assert list(both.envs) == ["one", "other"]


def test_the_plans_of_a_range_are_within_its_ends_and_middle():
    env = make_small_env()
    budget = BudgetRange(Budget({"macs": 0.4}), Budget({"macs": 0.8}))
    env.set_budget(budget)
    policy = learn(env, algorithm="ppo", episodes=3, seed=0).model
    plans = plans_within(env, budget, policy)
    assert list(plans) == [
        f"macs={share} {how}" for share in (0.4, 0.6, 0.8) for how in ("uniform", "learned")
    ]
    for name, plan in plans.items():
        assert env.problem.shares(plan.to_dict())["macs"] <= float(name.split("=")[1].split()[0])
    assert list(plans_within(env, Budget({"macs": 0.4}), policy)) == ["macs=0.4 uniform", "macs=0.4 learned"]
    assert env.problem.allocation("uniform") == plans["macs=0.4 uniform"].to_dict()


def test_the_shipped_policy_decides_alike_each_time_and_samples_may_do_better(caplog, monkeypatch):
    env, folder = make_small_env(), policy_folder("builtin")
    assert folder == BUILTIN
    assert apply_policy(env, folder).plan == apply_policy(env, folder).plan
    assert CompressionPlan(apply_policy(env, folder).plan)
    torch.manual_seed(0)
    validated = []
    monkeypatch.setattr(
        type(env.problem), "validate", lambda self, plan: validated.append(plan) or len(validated)
    )
    chosen = apply_policy(env, folder, samples=20)
    assert chosen.plan == validated[-1]
    monkeypatch.setattr("prunegym.agents.reuse.UNIFORM_TOTAL", 2.0)
    with caplog.at_level(logging.WARNING):
        apply_policy(env, folder)
    assert "decides worse than uniform pruning here" in caplog.text


def test_a_policy_of_another_algorithm_is_no_beginning():
    env = make_small_env()
    assert load_initial_policy(BUILTIN, env, algorithm="dyna-ppo", hyperparameters={}).folder == BUILTIN
    with pytest.raises(AgentError, match="is a policy of ppo, not of sac"):
        load_initial_policy(BUILTIN, env, algorithm="sac", hyperparameters={})
