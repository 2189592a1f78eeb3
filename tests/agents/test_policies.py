import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.algorithms import ALGORITHMS
from agents.errors import AgentError, PolicyError
from agents.policies import load_policy, save_policy
from agents.training import learn


@pytest.fixture
def folder(env, tmp_path):
    spec = ALGORITHMS["ppo"]
    save_policy(spec.make(env, 0, "cpu", None, spec.hyperparameters), env, tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_loaded_policy_decides_as_the_learned_one(env, tmp_path, name):
    model = learn(env, algorithm=name, episodes=10, seed=0).model
    save_policy(model, env, tmp_path)
    act = load_policy(tmp_path, env)
    for _ in range(20):
        observation = env.observation_space.sample()
        np.testing.assert_array_equal(act(observation), model.predict(observation, deterministic=True)[0])


def test_the_files_hold_tensors_and_json_only(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["policy.json", "policy.safetensors"]
    assert json.loads((folder / "policy.json").read_text())["net_arch"] == [64, 64]


def test_another_network_may_have_more_groups_if_it_observes_the_same(env, toy, folder):
    larger = toy(9)
    larger.observation_names = env.observation_names
    larger.observation_space = env.observation_space
    assert load_policy(folder, larger)(env.observation_space.sample()).shape == (2,)


def test_other_observations_are_refused_and_both_schemas_named(toy, folder):
    with pytest.raises(
        PolicyError, match=r"'is_layer4.conv'.*this environment gives .*'is_layer1.conv'\]}; train"
    ):
        load_policy(folder, toy(2))


def test_another_observation_version_is_refused(env, folder):
    env.observation_version = 2
    with pytest.raises(PolicyError, match=r"'version': 1, .*'version': 2"):
        load_policy(folder, env)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_missing_or_damaged_file_is_refused_in_one_line(env, folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(PolicyError, match=rf"^cannot read the policy .*{name}.*$") as caught:
        load_policy(folder, env)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected a policy of version 1, got 2"),
        ({"algorithm": "nope"}, "no algorithm named 'nope'"),
        ({"net_arch": [64, "x"]}, "net_arch must be a list of layer widths"),
        ({"net_arch": [32, 32]}, "cannot read the policy"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_in_one_line(env, folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(AgentError, match=message) as caught:
        load_policy(folder, env)
    assert "\n" not in str(caught.value)


def test_a_description_without_a_key_is_refused(env, folder):
    (folder / "policy.json").write_text('{"version": 1, "algorithm": "ppo"}')
    with pytest.raises(PolicyError, match="net_arch, observation missing"):
        load_policy(folder, env)


def test_weights_that_are_not_finite_are_refused(env, folder):
    path = folder / "policy.safetensors"
    save_file(load_file(path) | {"action_net.bias": torch.full((2,), torch.nan)}, path)
    with pytest.raises(PolicyError, match=r"action_net\.bias not finite"):
        load_policy(folder, env)
