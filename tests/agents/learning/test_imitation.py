"""Going on from a policy with layers that it has not got."""

import numpy as np
import pytest
import torch

from prunegym.agents.learning.imitation import imitate_
from prunegym.agents.learning.policies import load_policy, save_policy
from prunegym.agents.rollout import deterministic, run_episode
from tests.agents.conftest import learn

LAYERS, NONE = {"policy_kwargs.net_arch": [32, 32]}, {"policy_kwargs.net_arch": []}


def start(env, name="ppo", **settings):
    return learn(env, algorithm=name, **{"episodes": 1, "seed": 0, "hyperparameters": LAYERS} | settings)


@pytest.fixture
def linear(toy, tmp_path):
    """The folder of a policy without layers, which has learned something."""
    save_policy(start(toy(), episodes=65, hyperparameters=NONE).model, toy(), tmp_path, learned_on={})
    return tmp_path


def actions(result):
    """Return the actions of a plan of the toy's: [groups, 2], in units in which they range from 0 to 2."""
    ratios = [[one["runtime_ratio"] / 0.25, one["static_ratio"] / 0.45] for one in result.plan.values()]
    return np.array(ratios)


def test_a_student_acts_explores_and_values_as_its_teacher_does(toy, linear):
    teacher = load_policy(linear, toy()).build(toy())
    student = start(toy()).model.policy
    env = toy()
    imitate_(student, teacher, env, seed=3)
    assert env.measured.value == 0
    observations = torch.stack([torch.from_numpy(toy().reset(seed=seed)[0]) for seed in range(20)])
    with torch.no_grad():
        near = torch.testing.assert_close
        near(student.predict_values(observations), teacher.predict_values(observations), atol=0.03, rtol=0)
        answers = [one.get_distribution(observations).distribution for one in (student, teacher)]
        near(answers[0].mean, answers[1].mean, atol=0.03, rtol=0)
        near(answers[0].stddev, answers[1].stddev)


@pytest.mark.parametrize("name", ["ppo", "dyna-ppo"])
def test_a_run_goes_on_from_a_linear_policy_with_layers(toy, linear, name):
    policy = load_policy(linear, toy())
    env = toy()
    continued = start(env, name, initial_policy=policy)
    assert continued.model.policy_kwargs["net_arch"] == [32, 32]
    assert env.measured.value == 1  # imitating costs no evaluation
    taught = run_episode(toy(), deterministic(policy.build(toy())), seed=0)
    np.testing.assert_allclose(actions(continued.final), actions(taught), atol=0.03)
    assert np.abs(actions(start(toy(), name).final) - actions(taught)).max() > 0.1


def test_it_stays_linear_on_several_networks(toy, linear):
    several = toy()
    several.networks = 2
    policy = load_policy(linear, several)
    continued = learn(several, episodes=1, seed=0, initial_policy=policy)
    assert continued.model.policy_kwargs["net_arch"] == []
    assert continued.final.plan == run_episode(toy(), deterministic(policy.build(toy())), seed=0).plan


def test_the_same_seed_imitates_the_same(toy, linear):
    policy = load_policy(linear, toy())
    first, second = (start(toy(), initial_policy=policy).final.plan for _ in range(2))
    assert first == second
