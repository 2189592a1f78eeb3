"""Observations as standard scores: what they are, and that they travel with a policy."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents.policies import load_policy, save_policy
from agents.rollout import deterministic, run_episode
from agents.standard_scores import FURTHEST, LEAST_DEVIATION, StandardScores
from agents.training import learn

SPACE = gym.spaces.Box(0.0, 1.0, (3,), np.float32)


def test_scores_are_deviations_from_the_usual_and_clipped():
    usual = np.array([[0.1, 0.5, 0.3], [0.3, 0.5, 0.3 + LEAST_DEVIATION]])  # deviations 0.1, 0 and too little
    scores = StandardScores(SPACE, usual)(torch.tensor([[0.4, 0.7, 0.3], [0.2, 0.5, 1.0], [1.0, 0.5, 0.0]]))
    expected = [[2.0, 0.2, -0.01], [0.0, 0.0, 0.69], [FURTHEST, 0.0, -0.31]]
    assert scores.numpy() == pytest.approx(np.array(expected), abs=1e-5)


def test_without_usual_observations_they_are_as_they_are():
    observation = torch.rand(4, 3)
    assert torch.equal(StandardScores(SPACE)(observation), observation)


def scores_of(model):
    return [module for module in model.policy.modules() if isinstance(module, StandardScores)]


def test_an_agent_of_one_network_sees_standard_scores_over_an_episode_of_uniform_pruning(env):
    (scores,) = scores_of(learn(env, episodes=1, seed=0).model)
    assert scores.mean.numpy() == pytest.approx(env.uniform_observations().mean(0))
    assert 1 / scores.scale.numpy()[1:] == pytest.approx(env.uniform_observations().std(0)[1:])
    assert scores.scale[0] == 1.0  # of a feature that never varies


def test_an_agent_of_several_networks_or_told_so_sees_observations_as_they_are(env, toy):
    assert not scores_of(learn(env, episodes=1, seed=0, hyperparameters={"standardize": False}).model)
    several = toy()
    several.networks = 5  # of one group each
    assert not scores_of(learn(several, episodes=1, seed=0).model)


@pytest.fixture
def folder(env, tmp_path):
    save_policy(learn(env, episodes=9, seed=0).model, env, tmp_path, learned_on={})
    return tmp_path


def test_they_travel_with_a_policy_and_are_kept_where_another_network_goes_on(env, toy, folder):
    policy = load_policy(folder, env)
    assert policy.standardized
    assert json.loads((folder / "policy.json").read_text())["observation"]["normaliser"] == "standard scores"
    mean = load_file(folder / "policy.safetensors")["features_extractor.mean"]
    assert torch.equal(mean, torch.tensor(env.uniform_observations().mean(0)))
    other = toy()
    other.uniform_observations = lambda: np.random.default_rng(0).random((5, 6))
    (scores,) = scores_of(learn(other, episodes=1, seed=0, initial_policy=policy).model)
    assert torch.equal(scores.mean, mean)


def test_a_policy_without_them_goes_on_without(env, tmp_path):
    found = learn(env, episodes=9, seed=0, hyperparameters={"standardize": False})
    save_policy(found.model, env, tmp_path, learned_on={})
    policy = load_policy(tmp_path, env)
    assert not policy.standardized
    assert not scores_of(learn(env, episodes=1, seed=0, initial_policy=policy).model)


def test_the_policy_decides_the_same_once_loaded(env, folder):
    again = learn(env, episodes=9, seed=0).final
    assert run_episode(env, deterministic(load_policy(folder, env).build(env)), seed=0).plan == again.plan
