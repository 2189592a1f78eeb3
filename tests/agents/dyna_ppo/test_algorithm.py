"""Learning on predicted losses; what holds for every algorithm is in `test_training`."""

import numpy as np
import pytest
import torch

from prunegym.agents.dyna_ppo.loss_model import LossModel
from prunegym.agents.learning.policies import load_policy, save_policy
from prunegym.agents.rollout import deterministic, run_episode
from tests.agents.conftest import learn

FEW = {
    "evaluated_episodes": 8,
    "warmup_episodes": 8,
    "imagined_episodes": 64,
    "episodes_per_update": 16,
    "n_epochs": 2,
}


def dyna(env, *, episodes, on_episode=None, **settings):
    hyperparameters = FEW | settings
    return learn(
        env,
        algorithm="dyna-ppo",
        episodes=episodes,
        seed=2,
        hyperparameters=hyperparameters,
        on_episode=on_episode,
    )


def weights(result):
    return torch.cat([tensor.flatten() for tensor in result.model.policy.state_dict().values()])


def test_fewer_evaluations_do_than_without_a_model(toy):
    found = dyna(toy(), episodes=60, warmup_episodes=40, imagined_episodes=320, n_epochs=20).final.total
    assert found > learn(toy(), algorithm="ppo", episodes=60, seed=2).final.total + 0.05
    assert found > run_episode(toy(), lambda observation: np.zeros(2, np.float32)).total + 0.2


def test_surrogate_episodes_evaluate_nothing(env):
    dyna(env, episodes=30)
    assert env.evaluations == env.measured.value == 30


def test_nothing_is_learned_before_there_is_enough_to_predict_from(toy):
    fits = []

    class Counting(LossModel):
        def fit(self):
            fits.append(len(self))
            super().fit()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunegym.agents.dyna_ppo.algorithm.LossModel", Counting)
        dyna(toy(), episodes=41, warmup_episodes=16)
    assert fits == [16, 24, 32, 40]


# a round that is cut short, and a run that ends before it has warmed up
@pytest.mark.parametrize(("episodes", "warmup"), [(13, 8), (13, 40), (2, 40)])
def test_in_the_end_all_evaluations_are_learned_from(toy, episodes, warmup):
    untrained = dyna(toy(), episodes=1)
    result = dyna(toy(), episodes=episodes, warmup_episodes=warmup)
    assert len(result.model.losses) == result.model._n_learned == episodes - 1
    assert not torch.equal(weights(result), weights(untrained))


def test_exploration_narrows_from_update_to_update(toy):
    seen = []
    dyna(toy(), episodes=41, exploration=0.5, final_exploration=1e-3, on_episode=seen.append)
    ratios = np.array([[one["static_ratio"] for one in result.plan.values()] for result in seen])
    first, *_, last = (ratios[start : start + 8].std(axis=0).mean() for start in (8, 16, 24, 32))
    assert first > 2 * last


def test_its_policies_are_those_of_ppo(env, tmp_path):
    model = dyna(env, episodes=9).model
    save_policy(model, env, tmp_path, learned_on={})
    policy = load_policy(tmp_path, env)
    assert policy.description["algorithm"] == "ppo"
    for algorithm in ("ppo", "dyna-ppo"):
        continued = learn(env, algorithm=algorithm, episodes=1, seed=3, initial_policy=policy)
        assert continued.final.plan == run_episode(env, deterministic(model), seed=3).plan


def test_several_processes_feed_one_model(toy):
    env = toy()
    result = learn(env, algorithm="dyna-ppo", episodes=17, seed=0, hyperparameters=FEW, n_envs=2)
    assert len(result.model.losses) == 16
    assert env.measured.value == 17


@pytest.mark.parametrize("name", ["imagined_episodes", "evaluated_episodes", "episodes_per_update"])
def test_numbers_that_do_not_divide_each_other_are_taken(toy, name):
    assert dyna(toy(3), episodes=20, **{name: 7}).episodes == 20


def test_no_exploration_at_all_is_a_little(toy):
    result = dyna(toy(), episodes=17, exploration=0.0, final_exploration=0.0)
    assert torch.isfinite(weights(result)).all()
