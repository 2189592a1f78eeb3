import json
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import prunegym.envs.input_pruning
from prunegym.envs import InputPruningVectorEnv
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.per_input import FEATURES
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example, snapshot
from tests.pruning.plans import cost_of
from tests.pruning.runtime.test_gates import compressed
from tests.pruning.runtime.test_outcomes import share_of
from tests.pruning.runtime.test_per_input import LARGEST, telling_apart

NAME, COUNT, BATCH, BUDGET = "padded", 38, 12, 0.7
IMAGES = EXAMPLES[NAME].images(COUNT)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def deciding():
    """(a network that decides for each input, what decides)"""
    found, (model, graph, _) = compressed(NAME, 0.0, 0.4), example(NAME)
    prices = cost_of(model, graph).input_prices(found.levels)
    ratios, _ = telling_apart(found.model, IMAGES, prices=prices)
    return found.model, ratios


def dense_logits_of():
    """What a surer network than the dense one says: what is lost then differs plainly among images."""
    return 4 * example(NAME)[0](IMAGES)


def make(model=None, *, dense_logits=None, **settings):
    wanted = dense_logits_of() if dense_logits is None else dense_logits
    given = {"budget": BUDGET, "num_envs": BATCH, **settings}
    return InputPruningVectorEnv(model or deciding()[0], images=IMAGES, dense_logits=wanted, **given)


@pytest.fixture
def env():
    return make()


def even(env, action):
    return np.full((env.num_envs, 1), action, dtype=np.float32)


def play(env, actions):
    """Send a batch through; return (its last observations, rewards, infos)."""
    for action in actions:
        observations, rewards, _, _, infos = env.step(action)
    return observations, rewards, infos


def random_actions(env, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (len(env.gate_names), env.num_envs, 1)).astype(np.float32)


def run_by_itself(counts, images):
    """The output of a network that runs these units, [images, gates], without anything that decides."""
    model = compressed(NAME, 0.0, 0.4).model
    gates = gates_of(model)
    for number, site in enumerate(gates.sites):
        gates.gate_for(site.group).count_of = lambda pooled, scores, number=number: counts[:, number]
    return model(images)


def loss_of(logits, wanted):
    dense, found = wanted.double().softmax(1), logits.double().softmax(1)
    return (1 - torch.exp(-(dense * (dense / found).log()).sum(1))).numpy()


def planned():
    """The units of the plan for every image."""
    return torch.tensor([[site.executed for site in gates_of(deciding()[0]).sites]] * COUNT)


@cache
def references():
    return loss_of(run_by_itself(planned(), IMAGES), dense_logits_of())


def which(reference):
    """The number of each image, by the loss that the plan has on it."""
    distances = abs(np.asarray(reference, dtype=np.float64)[:, None] - references()[None])
    assert (np.sort(distances, axis=1)[:, 1] > 1e-5).all()  # none can be mistaken
    return distances.argmin(1)


def test_the_spaces_are_those_of_a_vector_environment(env):
    assert env.num_envs == BATCH
    assert env.single_action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert env.single_observation_space == spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
    assert env.action_space == spaces.Box(-1.0, 1.0, (BATCH, 1), np.float32)
    assert env.observation_space == spaces.Box(0.0, 1.0, (BATCH, len(FEATURES)), np.float32)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.gate_names == tuple(site.group for site in gates_of(deciding()[0]).sites)
    assert len(env.gate_names) > 1


def test_a_batch_as_large_as_there_are_images():
    assert make(num_envs=256).num_envs == COUNT


def test_what_a_step_returns(env):
    observations, infos = env.reset(seed=0)
    assert infos == {}
    env.action_space.seed(0)
    for number in range(3 * len(env.gate_names)):
        assert observations in env.observation_space
        observations, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        last = number % len(env.gate_names) == len(env.gate_names) - 1
        assert [rewards.shape, terminated.shape, truncated.shape] == [(BATCH,)] * 3
        assert [rewards.dtype, terminated.dtype, truncated.dtype] == [np.float64, bool, bool]
        assert terminated.tolist() == [last] * BATCH  # all inputs arrive together
        assert not truncated.any()
        assert np.isfinite(rewards).all()
        assert rewards.any() == last
        assert list(infos) == (["macs", "loss", "reference", "agrees", "ratios"] if last else [])
    assert {name: values.shape for name, values in infos.items()} == {
        **dict.fromkeys(("macs", "loss", "reference", "agrees"), (BATCH,)),
        "ratios": (BATCH, len(env.gate_names)),
    }
    env.close()


def test_the_next_inputs_begin_in_the_same_step(env):
    env.reset(seed=0)
    observations, _, first = play(env, random_actions(env))
    names = dict(zip(FEATURES, observations.T, strict=True))
    assert (names["passed"] == 0).all()
    assert (names["last"] == 0).all()
    _, _, second = play(env, random_actions(env))
    assert not set(which(first["reference"])) & set(which(second["reference"]))


def test_what_is_observed_and_paid_for_is_what_the_network_does(env):
    env.price = 1.7
    env.reset(seed=0)
    _, ratios = deciding()
    _, rewards, infos = play(env, random_actions(env))
    at = which(infos["reference"])
    units = np.array(ratios.units)
    counts = np.rint(units * (1 - infos["ratios"])).astype(int)
    assert abs(counts - units * (1 - infos["ratios"])).max() < 1e-6
    assert len(np.unique(counts, axis=0)) > BATCH / 2
    logits, wanted = run_by_itself(torch.tensor(counts), IMAGES[at]), dense_logits_of()[at]
    lost, reference = loss_of(logits, wanted), references()
    macs = share_of(torch.tensor(counts), ratios).numpy()
    np.testing.assert_allclose(infos["macs"], macs, rtol=1e-9)
    np.testing.assert_allclose(infos["loss"], lost, atol=1e-5)
    assert infos["agrees"].tolist() == (logits.argmax(1) == wanted.argmax(1)).tolist()
    expected = (reference[at] - lost) / reference.mean() - 1.7 * (macs / BUDGET - 1)
    np.testing.assert_allclose(rewards, expected, atol=1e-4)


@pytest.mark.parametrize("price", [0.0, 0.8])
def test_actions_of_zero_are_the_plan_and_gain_nothing_but_what_they_cost(env, price):
    env.price = price
    env.reset(seed=1)
    _, rewards, infos = play(env, [even(env, 0.0)] * len(env.gate_names))
    np.testing.assert_allclose(infos["loss"], infos["reference"], atol=1e-6)
    cost = float(share_of(planned()[:1], deciding()[1]))
    np.testing.assert_allclose(infos["macs"], [cost] * BATCH, rtol=1e-9)
    np.testing.assert_allclose(rewards, -price * (infos["macs"] / BUDGET - 1), atol=1e-5)
    assert (infos["ratios"] == 1 - planned()[:BATCH].numpy() / deciding()[1].units).all()


def test_the_reference_does_not_depend_on_how_many_images_are_looked_at_together(monkeypatch):
    monkeypatch.setattr(prunegym.envs.input_pruning, "BATCH", 7)
    env = make()
    env.reset(seed=0)
    infos = play(env, random_actions(env))[2]
    distances = abs(infos["reference"][:, None] - references()[None]).min(1)
    assert distances.max() < 1e-6


def test_actions_beyond_the_box_are_clipped(env):
    found = []
    for action in (1.0, 1e9, np.inf, -1.0, -1e9):
        env.reset(seed=0)
        found.append(play(env, [even(env, action)] * len(env.gate_names)))
    units = np.array(deciding()[1].units)
    least = np.maximum(1, np.floor(units * (1 - LARGEST) + 0.5))
    for number, (_, rewards, infos) in enumerate(found):
        same = found[0 if number < 3 else 3]
        assert rewards.tolist() == same[1].tolist()
        np.testing.assert_allclose(infos["ratios"][0], 1 - least / units if number < 3 else 0 * units)


def test_resets_with_one_seed_are_equal_whatever_was_before(env):
    first, _ = env.reset(seed=3)
    rewards = play(env, random_actions(env))[1]
    again, _ = env.reset(seed=3)
    assert np.array_equal(first, again)
    assert np.array_equal(play(env, random_actions(env))[1], rewards)
    assert np.array_equal(make().reset(seed=3)[0], first)
    assert not np.array_equal(env.reset(seed=4)[0], first)


def test_every_image_is_met_once_in_each_pass_as_far_as_batches_fill(env):
    env.reset(seed=0)
    passes = []
    for _ in range(4):
        met = [which(play(env, random_actions(env))[2]["reference"]).tolist() for _ in range(COUNT // BATCH)]
        passes.append([number for batch in met for number in batch])
        assert len(set(passes[-1])) == COUNT // BATCH * BATCH
    assert len({tuple(order) for order in passes}) == 4
    assert set().union(*passes) == set(range(COUNT))  # none is left out for good


def test_a_reset_without_a_seed_goes_on_with_the_next_inputs(env):
    env.reset(seed=0)
    first = which(play(env, random_actions(env))[2]["reference"])
    env.reset()  # the second batch is not finished
    third = which(play(env, random_actions(env))[2]["reference"])
    assert not set(first) & set(third)


@pytest.mark.parametrize("batches", [0, 2, 5])
def test_it_starts_again_where_it_was(env, batches):
    env.price = 0.4
    env.reset(seed=0)
    for _ in range(batches):
        play(env, random_actions(env))
    env.step(even(env, 0.3))
    state = json.loads(json.dumps(env.episode_start()))
    other = make()
    other.reset(seed=9)
    other.step(even(other, -1.0))
    other.restart_from(state)
    assert other.price == 0.4
    env.restart_from(state)
    assert np.array_equal(other.reset()[0], env.reset()[0])
    for number in range(COUNT // BATCH + 2):  # into the next pass
        (seen, rewards, _), (also_seen, also_rewards, _) = (
            play(one, random_actions(one, number)) for one in (env, other)
        )
        assert np.array_equal(seen, also_seen)
        assert np.array_equal(rewards, also_rewards)


def test_where_it_starts_again_is_where_the_episodes_at_hand_began(env):
    env.reset(seed=0)
    play(env, random_actions(env))
    env.step(even(env, 0.3))
    state = env.episode_start()
    rest = random_actions(env)[1:]
    expected = which(play(env, rest)[2]["reference"])
    env.restart_from(state)
    env.reset()
    assert which(play(env, random_actions(env))[2]["reference"]).tolist() == expected.tolist()


def outcome_at(action):
    """(logits of all images, their mean cost) if a policy says the same of all."""
    model, ratios = deciding()
    ratios.policy[-1].weight.zero_()
    ratios.policy[-1].bias.fill_(action)
    logits = model(IMAGES)
    return logits, float(share_of(torch.stack(ratios.decided, dim=1), ratios).mean())


def test_the_marginal_price_is_what_skipping_loses_for_what_it_saves(env):
    (dear, dear_macs), (cheap, cheap_macs) = (outcome_at(action) for action in (-0.25, 0.25))
    wanted = dense_logits_of()
    lost = (loss_of(cheap, wanted).mean() - loss_of(dear, wanted).mean()) / references().mean()
    expected = lost / ((dear_macs - cheap_macs) / BUDGET)
    assert expected > 0
    assert env.marginal_price() == pytest.approx(expected, rel=1e-4)


def test_the_marginal_price_is_never_negative():
    cheap, _ = outcome_at(0.25)
    assert make(dense_logits=cheap).marginal_price() == 0.0  # what runs more is farther from it


def test_there_is_no_price_where_a_little_skipping_changes_nothing(env, monkeypatch):
    monkeypatch.setattr(prunegym.envs.input_pruning, "PRICE_STEP", 1e-4)
    assert env.marginal_price() == 0.0


def test_the_network_stays_as_it_was():
    model, _ = deciding()
    before, expected = snapshot(model), model(IMAGES)
    env = make(model)
    env.reset(seed=0)
    env.marginal_price()
    env.reset()
    play(env, random_actions(env))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IMAGES), expected)  # its own policy decides again


def test_it_can_be_made_by_name():
    made = gym.make_vec(
        "prunegym/InputPruning-v0",
        num_envs=BATCH,
        vectorization_mode="vector_entry_point",
        model=deciding()[0],
        images=IMAGES,
        dense_logits=dense_logits_of(),
        budget=BUDGET,
    )
    observations, _ = made.reset(seed=3)
    assert observations.shape == (BATCH, len(FEATURES))
    np.testing.assert_array_equal(observations, make().reset(seed=3)[0])
