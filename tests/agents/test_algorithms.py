import pytest

from agents.algorithms import ALGORITHMS
from agents.errors import UnknownAlgorithmError


def test_an_unknown_algorithm_is_refused_with_the_nearest_and_the_rest():
    with pytest.raises(
        UnknownAlgorithmError, match=r"no algorithm named 'pppo'\. Did you mean 'ppo'\? Known: ppo"
    ):
        ALGORITHMS["pppo"]


@pytest.mark.parametrize("groups", [1, 2, 7, 60])
def test_ppo_updates_on_whole_episodes_whatever_the_group_count(toy, groups):
    spec = ALGORITHMS["ppo"]
    model = spec.make(toy(groups), 0, "cpu", None, spec.hyperparameters)  # warnings are errors
    assert model.n_steps == 8 * groups


def test_exploration_starts_around_the_uniform_plan(env):
    spec = ALGORITHMS["ppo"]
    model = spec.make(env, 0, "cpu", None, spec.hyperparameters)
    action, _ = model.predict(env.reset(seed=0)[0], deterministic=True)
    assert abs(action).max() < 0.05
