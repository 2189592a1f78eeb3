import hashlib
import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prunegym.agents.errors import AgentError, PolicyError
from prunegym.agents.learning.algorithms import ALGORITHMS, RolloutSchedule
from prunegym.agents.learning.policies import (
    action_mode,
    fitting_hyperparameters,
    load_policy,
    save_mean_policy,
    save_policy,
)
from prunegym.agents.vector.make import vectorized
from tests.agents.conftest import learn

ACTION = {
    "techniques": ["gates", "channels"],
    "names": ["runtime_ratio", "static_ratio"],
    "low": -1.0,
    "high": 1.0,
    "mode": "centred",
}


def untrained(env, name="ppo"):
    spec = ALGORITHMS[name]
    return spec.make(
        vectorized(env),
        RolloutSchedule(len(env.site_names), networks=1, n_envs=1),
        hyperparameters=spec.hyperparameters,
        seed=0,
        device="cpu",
        tensorboard_log=None,
    )


@pytest.fixture
def folder(env, tmp_path):
    save_policy(untrained(env), env, tmp_path, learned_on={"networks": ["toy"], "episodes": 9})
    return tmp_path


def edit(folder, **changes):
    path = folder / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_files_hold_tensors_and_json_only(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["policy.json", "policy.safetensors"]
    description = json.loads((folder / "policy.json").read_text())
    assert (description["version"], description["algorithm"]) == (4, "ppo")
    assert description["shape"] == {"net_arch": [64, 64]}
    assert description["learned_on"] == {"networks": ["toy"], "episodes": 9}
    assert description["observation"]["names"][:2] == ["noise", "is_layer0.conv"]


@pytest.mark.parametrize("name", ["ddpg", "amc", "sac"])  # of one critic, of wide layers, of two critics
def test_policies_of_any_shape_are_rebuilt(env, tmp_path, name):
    model = untrained(env, name)
    save_policy(model, env, tmp_path, learned_on={})
    rebuilt = load_policy(tmp_path, env).build(env).state_dict()
    for key, tensor in model.policy.state_dict().items():
        assert torch.equal(rebuilt[key], tensor)


def test_another_network_may_have_more_groups_if_it_observes_the_same(env, toy, folder):
    larger = toy(9)
    larger.observation_names = env.observation_names
    larger.observation_space = env.observation_space
    action, _ = load_policy(folder, larger).build(larger).predict(env.observation_space.sample())
    assert action.shape == (2,)


def test_a_policy_brings_the_width_of_its_layers(env, folder):
    edit(folder, shape={"net_arch": [7]})
    settings = {"gamma": 0.5, "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.0}}
    fitting = fitting_hyperparameters(load_policy(folder, env), "ppo", settings)
    assert fitting == {"gamma": 0.5, "policy_kwargs": {"net_arch": [7], "log_std_init": -1.0}}
    assert settings["policy_kwargs"]["net_arch"] == [64, 64]


def test_layers_that_were_asked_for_are_taken_where_a_policy_can_be_imitated(env, folder, tmp_path):
    asked = {"policy_kwargs": {"net_arch": [7], "log_std_init": -1.0}}
    overridden = ["policy_kwargs.net_arch"]
    assert (
        fitting_hyperparameters(load_policy(folder, env), "ppo", asked, overridden=overridden)[
            "policy_kwargs"
        ]
        == asked["policy_kwargs"]
    )
    (tmp_path / "sac").mkdir()
    save_policy(untrained(env, "sac"), env, tmp_path / "sac", learned_on={})
    policy = load_policy(tmp_path / "sac", env)
    with pytest.raises(PolicyError, match=r"sac has layers of \[64, 64\]; leave policy_kwargs.net_arch out"):
        fitting_hyperparameters(policy, "sac", asked, overridden=overridden)
    same = {"policy_kwargs": {"net_arch": [64, 64]}}
    assert fitting_hyperparameters(policy, "sac", same, overridden=overridden) == same


def test_the_policy_of_another_algorithm_is_refused_to_go_on_from(env, folder):
    with pytest.raises(PolicyError, match="is a policy of ppo, not of sac; use --algo dyna-ppo or ppo"):
        fitting_hyperparameters(load_policy(folder, env), "sac", ALGORITHMS["sac"].hyperparameters)


def test_other_observations_are_refused_and_both_schemas_named(toy, folder):
    with pytest.raises(
        PolicyError,
        match=r": names \['is_layer2.conv', 'is_layer3.conv', 'is_layer4.conv'\] there, \[\] here; train",
    ):
        load_policy(folder, toy(2))


def test_the_same_features_in_another_order_are_refused(env, folder):
    env.observation_names = env.observation_names[::-1]
    with pytest.raises(PolicyError, match=r"names \['noise', .*\] there, \[.*, 'noise'\] here; train"):
        load_policy(folder, env)


def test_another_observation_version_is_refused(env, folder):
    env.observation_version = 2
    with pytest.raises(PolicyError, match=r"environment: version 1 there, 2 here; train"):
        load_policy(folder, env)


def test_another_normaliser_is_refused(env, folder):
    env.observation_normaliser = "ranks"
    with pytest.raises(PolicyError, match=r"environment: normaliser 'none' there, 'ranks' here; train"):
        load_policy(folder, env)


def test_an_environment_that_takes_actions_for_something_else_is_refused(env, folder, tmp_path):
    assert action_mode(folder) == "centred"
    env.action_mode = "raw"
    with pytest.raises(PolicyError, match=r"the actions .*: mode 'centred' there, 'raw' here; train"):
        load_policy(folder, env)
    (tmp_path / "raw").mkdir()
    save_policy(untrained(env), env, tmp_path / "raw", learned_on={})
    assert action_mode(tmp_path / "raw") == "raw"
    load_policy(tmp_path / "raw", env)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_missing_or_damaged_file_is_refused_in_one_line(env, folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    words = {
        "missing": f"^cannot read the policy .*{name}",
        "cut": rf"{name}: Unterminated|policy\.safetensors is not the file that policy\.json describes",
        "empty": f"{name}.* is an empty file",
    }
    with pytest.raises(PolicyError, match=words[damage]) as caught:
        load_policy(folder, env)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "expected a policy of version 4, got 1; train it anew"),
        ({"version": 3}, "expected a policy of version 4, got 3"),
        ({"version": 4.0}, "expected a policy of version 4, got 4.0"),
        ({"weights_sha256": None}, r"is not the file that policy\.json describes"),
        ({"version": None}, "expected a policy of version 4, got None"),
        ({"algorithm": "nope"}, r"policy\.json: no algorithm named 'nope'"),
        ({"action": {**ACTION, "low": -2.0}}, "the actions .*: low -2.0 there, -1.0 here; train"),
        ({"action": {**ACTION, "names": ["static_ratio"]}}, r"names \[\] there, \['runtime_ratio'\] here"),
        (
            {"action": {**ACTION, "techniques": ["channels"]}},
            "knows nothing of gates; use --techniques channels",
        ),
        ({"action": "both"}, "does not say what its actions mean"),
        ({"observation": {"names": "all"}}, "there, entries version, names, normaliser here"),
        ({"algorithm": ["ppo"]}, "no algorithm named"),
        ({"shape": [64, 64]}, "shape must hold a list of layer widths"),
        ({"shape": {}}, "shape must hold a list of layer widths"),
        ({"shape": {"net_arch": [64, "x"]}}, "shape must hold a list of layer widths"),
        ({"shape": {"net_arch": [64, 0]}}, "shape must hold a list of layer widths"),
        ({"shape": {"net_arch": [64, 64], "activation_fn": "os.system"}}, "shape must hold a list of layer"),
        ({"shape": {"net_arch": [32, 32]}}, r"policy\.safetensors does not fit policy\.json"),
        ({"shape": {"net_arch": [64, 64], "n_critics": 1}}, "does not fit"),
        ({"shape": {"net_arch": [10**9, 10**9]}}, "asks for 1000000000, there are 64"),
        ({"shape": {"net_arch": [1] * 10**4}}, r"asks for 10000, there are \d+\)"),
        ({"shape": {"net_arch": [64, 64], "n_critics": 10**9}}, "asks for 1000000000, there are"),
        ({"shape": {"net_arch": [64, 64], "n_critics": "two"}}, "shape must hold"),
        ({"shape": {"net_arch": [64, 64], "n_critics": -1}}, "shape must hold"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_in_one_line(env, folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(AgentError, match=message) as caught:
        load_policy(folder, env).build(env)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_refused(env, folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(PolicyError, match=f"cannot read the policy .*{name}"):
        load_policy(folder, env)


def test_json_that_is_nested_without_end_is_refused(env, folder):
    (folder / "policy.json").write_text('{"version":' * 10**5)
    with pytest.raises(PolicyError, match="cannot read the policy"):
        load_policy(folder, env)


JUNK = st.recursive(
    st.sampled_from([None, True, -1, 0, 1, 64, 10**12, 10**400, 0.5, "", "ppo", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "mean"]), inner),
    max_leaves=3,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_description_is_refused_by_name_or_fits(env, folder, data):
    path = folder / "policy.json"
    whole = path.read_text()
    record = json.loads(whole)
    holder = data.draw(st.sampled_from([record, record["shape"], record["observation"], record["action"]]))
    key = data.draw(st.sampled_from([*holder, "extra"]))
    if data.draw(st.booleans()):
        holder.pop(key, None)
    else:
        holder[key] = data.draw(JUNK)
    path.write_text(json.dumps(record))
    with suppress(AgentError):
        load_policy(folder, env).build(env)
    path.write_text(whole)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"version"'])
def test_json_that_is_no_object_is_refused(env, folder, text):
    (folder / "policy.json").write_text(text)
    with pytest.raises(PolicyError, match="expected a policy of version 4, got None"):
        load_policy(folder, env)


def test_a_description_without_a_key_is_refused(env, folder):
    (folder / "policy.json").write_text('{"version": 4, "algorithm": "ppo"}')
    with pytest.raises(PolicyError, match="observation, shape, weights_sha256 missing"):
        load_policy(folder, env)


def rewrite(folder, tensors):
    """Write other tensors, with their checksum."""
    save_file(tensors, folder / "policy.safetensors")
    edit(folder, weights_sha256=hashlib.sha256((folder / "policy.safetensors").read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("action_net.bias", torch.full((2,), value)) for value in (torch.nan, torch.inf, 1e30, -1e30)],
        ("action_net.bias", torch.ones(2, dtype=torch.bool)),
        ("action_net.bias", torch.ones(2, dtype=torch.complex64)),
        ("log_std", torch.full((2,), 1e3)),
    ],
)
def test_weights_that_make_no_sense_are_refused(env, folder, name, value):
    rewrite(folder, load_file(folder / "policy.safetensors") | {name: value})
    with pytest.raises(PolicyError, match=rf"{name} not finite, or far too large"):
        load_policy(folder, env)


def test_one_bit_that_flipped_is_noticed(env, folder):
    path = folder / "policy.safetensors"
    *most, last = path.read_bytes()
    path.write_bytes(bytes([*most, last ^ 1]))
    with pytest.raises(PolicyError, match=r"is not the file that policy\.json describes; copy the policy"):
        load_policy(folder, env)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PolicyError, match=r"policy\.safetensors is a Git LFS pointer"):
        load_policy(folder, env)


@pytest.mark.parametrize("change", ["one missing", "one more", "another shape"])
def test_tensors_that_do_not_fit_are_refused_in_one_line(env, folder, change):
    tensors = load_file(folder / "policy.safetensors")
    if change == "one missing":
        del tensors["action_net.bias"]
    else:
        tensors["more" if change == "one more" else "action_net.bias"] = torch.zeros(3)
    rewrite(folder, tensors)
    with pytest.raises(PolicyError, match=r"policy\.safetensors does not fit policy\.json") as caught:
        load_policy(folder, env).build(env)
    assert "\n" not in str(caught.value)


def test_a_rebuilt_policy_acts_within_the_box(env, folder):
    policy = load_policy(folder, env).build(env)
    for deterministic in (True, False):
        action, _ = policy.predict(np.ones(6, np.float32), deterministic=deterministic)
        assert (abs(action) <= 1).all()


def linear_policy(env, folder, seed):
    folder.mkdir()
    model = learn(
        env, algorithm="ppo", episodes=9, seed=seed, hyperparameters={"policy_kwargs.net_arch": []}
    ).model
    save_policy(model, env, folder, learned_on={"seed": seed})
    return load_policy(folder, env)


def test_the_mean_of_linear_policies_decides_the_mean_of_what_they_do(env, tmp_path):
    policies = [linear_policy(env, tmp_path / str(seed), seed) for seed in range(3)]
    save_mean_policy(policies, tmp_path, learned_on={"mean_of": 3})
    mean = load_policy(tmp_path, env)
    assert mean.description["learned_on"] == {"mean_of": 3}
    observation = env.observation_space.sample()
    actions = [policy.build(env).predict(observation, deterministic=True)[0] for policy in policies]
    found = mean.build(env).predict(observation, deterministic=True)[0]
    assert np.ptp(actions, axis=0).max() > 1e-3
    assert found == pytest.approx(np.mean(actions, axis=0), abs=1e-5)


def test_policies_with_layers_or_of_different_kinds_have_no_mean(env, folder, tmp_path):
    deep = load_policy(folder, env)
    (tmp_path / "mean").mkdir()
    for policies in ([deep, deep], [linear_policy(env, tmp_path / "linear", 0), deep]):
        with pytest.raises(PolicyError, match="only linear policies of one kind have a mean"):
            save_mean_policy(policies, tmp_path / "mean", learned_on={})
    assert not list((tmp_path / "mean").iterdir())
