"""With channels and gates alone, all is as it was before there were other techniques."""

import numpy as np
import pytest

from tests.envs.recorded_episodes import SETTINGS, env_of, recorded, replayed


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_same_actions_make_the_same_episode_as_before(name):
    env = env_of(name)
    columns = [env.observation_names.index(feature) for feature in recorded()["features"]]
    for before in recorded()["episodes"][name]:
        observations, result = replayed(env, before["actions"])
        np.testing.assert_allclose(observations[:, columns], before["observations"], atol=1e-6)
        for site, decision in before["plan"].items():
            found = result["plan"][site]
            assert {key: found.get(key, 0.0) for key in decision} == decision
        assert (result["shares"]["macs"], result["shares"]["params"]) == (before["macs"], before["params"])
        assert result["reward"]["total"] == pytest.approx(before["total"], rel=1e-4)
