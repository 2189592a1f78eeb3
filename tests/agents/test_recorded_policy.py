"""The policy that ships decides as it did before policies were saved with the names of techniques."""

import numpy as np
import pytest

from prunegym.agents.errors import AgentError
from prunegym.agents.learning.policies import BUILTIN, load_policy
from prunegym.agents.rollout import deterministic, run_episode
from prunegym.envs import make_env
from tests.envs.recorded_episodes import batches, env_of, recorded, replayed


def test_the_shipped_policy_decides_as_it_did():
    env = env_of("policy")
    act = deterministic(load_policy(BUILTIN, env).build(env))
    (before,) = recorded()["episodes"]["policy"]
    observations, _ = replayed(env, before["actions"])
    decided = np.array([act(observation) for observation in observations[:-1]])
    np.testing.assert_allclose(decided, before["actions"], atol=1e-5)


def without_gates():
    network = env_of("policy").problem.network.model
    given = {"calibration": batches(1), "reward": batches(2), "budget": {"macs": 0.5}}
    return make_env(model=network, techniques=("channels",), **given)


def test_where_fewer_techniques_are_on_it_acts_as_if_they_could_decide_nowhere():
    env, full = without_gates(), env_of("policy")
    act, whole = (deterministic(load_policy(BUILTIN, one).build(one)) for one in (env, full))
    observation, _ = env.reset()
    # what the full policy is shown where no gate can be anywhere
    constant = {name: -1.0 if name.startswith("available") else 0.0 for name in full.observation_names}
    seen = dict(zip(env.observation_names, observation.tolist(), strict=True))
    row = np.array([seen.get(name, constant[name]) for name in full.observation_names], dtype=np.float32)
    assert act(observation).shape == (1,)
    assert act(observation)[0] == pytest.approx(whole(row)[1], abs=1e-6)
    assert run_episode(env, act).shares["macs"] <= 0.5


def test_a_policy_that_lacks_a_technique_is_refused_with_the_difference():
    given = {"calibration": batches(1), "reward": batches(2), "budget": {"macs": 0.5}}
    network = env_of("policy").problem.network.model
    env = make_env(model=network, techniques=("channels", "gates", "depth"), **given)
    with pytest.raises(
        AgentError, match="learned with the techniques gates channels and knows nothing of depth"
    ):
        load_policy(BUILTIN, env)
