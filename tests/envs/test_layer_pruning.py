import copy
import json
import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_for_gymnasium
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_for_sb3

import prunegym  # noqa: F401  (registers the environments)
from prunegym.envs import Budget, BudgetRange, Limits, make_env
from prunegym.pruning.errors import (
    BudgetError,
    DataError,
    ImpossibleBudgetError,
    PlanError,
    UnknownNameError,
    WeightsError,
)
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from tests.envs.conftest import features_of, labelled, loader, make_small_env
from tests.pruning.oracles import assert_untouched, counted_macs, counted_params, snapshot

ZERO = np.zeros(2, dtype=np.float32)


def play(env, actions):
    """Take the actions; return the rewards, the last flags, and all infos."""
    env.reset()
    rewards, infos = [], []
    for action in actions:
        _, reward, terminated, truncated, info = env.step(np.array(action, dtype=np.float32))
        rewards.append(reward)
        infos.append(info)
    return rewards, (terminated, truncated), infos


def random_actions(env, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (len(env.site_names), 2)).astype(np.float32)


def result_of(env, actions):
    return play(env, actions)[2][-1]["episode_result"]


def objects(name="residual", **settings):
    model, images, labels = labelled(name)
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    return {"model": model, "calibration": batches, "reward": batches, "budget": {"macs": 0.5}, **settings}


def test_gymnasiums_checker_is_silent_on_python_objects():
    env = gym.make("prunegym/LayerPruning-v0", **objects(), render_mode="ansi")
    check_for_gymnasium(env.unwrapped)
    play(env, random_actions(env.unwrapped))  # through the wrappers, which check each step too


def test_sb3s_checker_is_silent_on_python_objects():
    check_for_sb3(gym.make("prunegym/LayerPruning-v0", **objects()).unwrapped)


RANGE = BudgetRange(Budget({"macs": 0.4}), Budget({"macs": 0.9}))


@pytest.mark.parametrize(
    "options",
    [
        {"actions": "raw"},
        {"dense_reward": True},
        {"first_images": 10},
        {"budget": RANGE},
        {"actions": "raw", "dense_reward": True, "first_images": 10, "budget": RANGE, "goal": "accuracy"},
    ],
    ids=lambda options: "-".join(options),
)
def test_both_checkers_are_silent_with_every_option(options):
    env = gym.make("prunegym/LayerPruning-v0", **objects(**options), render_mode="ansi")
    check_for_gymnasium(env.unwrapped)
    check_for_sb3(env.unwrapped)
    play(env, random_actions(env.unwrapped))


def test_the_same_actions_make_the_same_episode_whatever_the_seed(small_env):
    env, other = small_env(), small_env()
    actions = random_actions(env)
    env.reset(seed=1)
    first = play(env, actions)
    other.reset(seed=2)
    assert play(env, actions) == first == play(other, actions)


def test_only_the_last_step_is_rewarded_and_terminates(small_env):
    env = small_env("projected")
    rewards, flags, infos = play(env, random_actions(env))
    assert rewards[:-1] == [0.0] * (len(rewards) - 1)
    assert rewards[-1] == infos[-1]["episode_result"]["reward"]["total"] > 0.0
    assert flags == (True, False)
    assert [info["site"] for info in infos] == list(env.site_names)
    assert all("episode_result" not in info for info in infos[:-1])


def test_info_is_plain_data(small_env):
    env = small_env()
    *_, infos = play(env, random_actions(env))
    for info in infos:
        assert json.loads(json.dumps(info)) == info
        assert copy.deepcopy(info) == pickle.loads(pickle.dumps(info)) == info


def test_equal_plans_are_carried_out_once(small_env, monkeypatch):
    env = small_env()
    env.reset()  # measures uniform pruning within the budget
    applied = []
    compress = env.problem.network.apply
    monkeypatch.setattr(env.problem.network, "apply", lambda plan: applied.append(plan) or compress(plan))
    actions = random_actions(env)
    first = result_of(env, actions)
    assert result_of(env, actions) == first
    assert len(applied) == 2  # and the uniform plan, that the reward refers to
    result_of(env, -actions)
    assert len(applied) == 3
    env.set_budget(Budget({"macs": 0.5}))
    assert result_of(env, actions) == first
    assert len(applied) == 3


def test_plans_that_differ_in_what_they_skip_only_are_different_plans(small_env):
    env = small_env("plain", budget={"params": 0.6})  # a gate's parameters do not depend on what it skips
    little, much = (result_of(env, [(skip, 0.0)] * 2) for skip in (0.5, 1.0))
    static = [[one["static_ratio"] for one in found["plan"].values()] for found in (little, much)]
    assert static[0] == static[1]
    assert little["shares"]["macs"] > much["shares"]["macs"]
    assert little["reward"] != much["reward"]


def test_the_dense_network_is_never_changed():
    model, images, labels = labelled("projected")
    before = snapshot(model)
    env = make_small_env("projected", model=model, validation=[(images, labels)])
    for seed in range(3):
        plan = result_of(env, random_actions(env, seed))["plan"]
        env.problem.validate(plan)
        env.problem.apply(plan)
    assert_untouched(model, before)


@settings(max_examples=25)
@given(
    st.sampled_from(["residual", "projected", "concat", "grouped", "bias-free", "flatten"]),
    st.integers(0, 1000),
    st.sampled_from([{"macs": 0.5}, {"params": 0.6}, {"macs": 0.7, "params": 0.6}]),
)
def test_a_plan_says_what_was_priced_and_costs_what_was_promised(network, seed, budget):
    env = make_small_env(network, budget=budget)
    result = result_of(env, random_actions(env, seed))
    assert all(result["shares"][name] <= share for name, share in budget.items())
    priced = env.problem.network
    levels = priced.space.levels(CompressionPlan(result["plan"]))
    assert priced.cost.shares(levels) == result["shares"]
    model, images, _ = labelled(network)
    small = env.problem.apply(result["plan"])
    assert counted_params(small) / counted_params(model) == result["shares"]["params"]
    if not any(one.get("runtime_ratio", 0.0) for one in result["plan"].values()):
        assert counted_macs(small, images[0]) / counted_macs(model, images[0]) == result["shares"]["macs"]


@pytest.mark.parametrize("round_to", [2, 4, 8])
def test_a_plan_in_multiples_comes_to_the_same_units_when_it_is_carried_out(small_env, round_to):
    env = small_env("projected", budget={"macs": 0.95}, method=Method(round_to=round_to))
    for seed in range(5):
        result = result_of(env, random_actions(env, seed))
        network = env.problem.network
        levels = network.space.levels(CompressionPlan(result["plan"]))
        assert network.cost.shares(levels)["params"] == result["shares"]["params"]
        assert all(
            kept % round_to == 0 or kept == group.units
            for kept, group in zip(levels["channels"], network.graph.prunable, strict=True)
        )


def test_macs_are_those_counted_where_nothing_is_gated(small_env):
    env = small_env("projected")
    result = result_of(env, [ZERO] * len(env.site_names))
    model, images, _ = labelled("projected")
    small = env.problem.apply(result["plan"])
    assert counted_macs(small, images[0]) / counted_macs(model, images[0]) == result["shares"]["macs"] <= 0.5


def test_accuracy_and_reward_are_those_of_the_network_that_comes_out(small_env):
    env = small_env("plain")
    uniform, result = (result_of(env, actions) for actions in ([ZERO] * 2, random_actions(env)))
    model, images, labels = labelled("plain")
    plans = (uniform["plan"], result["plan"])
    with torch.no_grad():
        wanted = model(images).double()
        usual, found = (env.problem.apply(plan)(images).double() for plan in plans)
    right = found.argmax(1) == labels
    assert result["accuracy"] == pytest.approx(float(right.double().mean()))
    chances = wanted.softmax(1)
    reference, loss = (
        float((chances * (chances.log() - logits.softmax(1).log())).sum(1).mean())
        for logits in (usual, found)
    )
    assert reference > 0.01
    assert loss != pytest.approx(reference, rel=0.1)
    assert result["reward"]["total"] == pytest.approx(math.exp(-loss / reference), rel=1e-5)


def test_validation_images_validate_and_reward_images_do_where_there_are_none():
    without = make_small_env()
    result = result_of(without, random_actions(without))
    assert without.problem.validate(result["plan"]) == result["accuracy"] < 1.0
    _, images, _ = labelled("residual", count=40, seed=9)
    with torch.no_grad():
        labels = without.problem.apply(result["plan"])(images).argmax(1)
    labels[0] += 1
    env = make_small_env(validation=[(images, labels)])
    assert env.problem.validate(result["plan"]) == 39 / 40


def test_a_changed_budget_binds_from_then_on(small_env):
    env = small_env(budget={"macs": 0.9})
    env.reset()
    env.step(ZERO)
    env.set_budget(Budget({"macs": 0.3}))  # begins an episode
    for _ in env.site_names:
        _, _, terminated, _, info = env.step(ZERO)
    assert terminated
    assert 0.15 < info["episode_result"]["shares"]["macs"] <= 0.3


def test_an_impossible_change_of_budget_leaves_the_environment_as_it_was(small_env):
    env = small_env()
    before = result_of(env, [ZERO] * len(env.site_names))
    with pytest.raises(ImpossibleBudgetError):
        env.set_budget(Budget({"macs": 0.001}))
    assert result_of(env, [ZERO] * len(env.site_names)) == before


def test_a_loader_that_shuffles_scores_like_a_list():
    _, images, labels = labelled("residual")
    settings = {"calibration": loader(images, labels), "reward": loader(images, labels, shuffle=True)}
    env, listed = make_small_env(**settings), make_small_env()
    actions = random_actions(env)
    found, expected = result_of(env, actions), result_of(listed, actions)
    assert found["plan"] == expected["plan"]
    assert found["reward"] == pytest.approx(expected["reward"])
    assert found["reward"]["divergence"] > 0.0


@pytest.mark.parametrize("network", ["one-channel", "mlp", "conv1d", "conv3d"])
def test_images_of_other_shapes_work(small_env, network):
    env = small_env(network, budget={"macs": 0.8})
    assert result_of(env, random_actions(env))["shares"]["macs"] <= 0.8


def test_frozen_layers_are_no_steps(small_env):
    assert small_env("plain").site_names == ("0.0", "1.0")
    assert small_env("plain", protect=["1.*"], budget={"macs": 0.8}).site_names == ("0.0",)
    assert small_env("plain", only=["1.*"], budget={"macs": 0.8}).site_names == ("1.0",)


def test_no_group_is_pruned_beyond_the_limits(small_env):
    env = small_env(
        "projected", limits=Limits({"static_ratio": 0.5, "runtime_ratio": 0.0}), budget={"macs": 0.6}
    )
    plan = result_of(env, [(1.0, 1.0)] * len(env.site_names))["plan"]
    assert all(one["static_ratio"] <= 0.5 and one.get("runtime_ratio", 0.0) == 0.0 for one in plan.values())


def test_the_decisions_so_far_are_rendered_as_text(small_env):
    env = small_env("plain", render_mode="ansi", budget={"macs": 0.5})
    env.reset()
    assert env.render().split() == ["site", "runtime_ratio", "static_ratio"]
    env.step(np.array([0.0, 1.0], dtype=np.float32))
    # with 2 of 6 the budget is not used up
    assert env.render().splitlines()[1].split() == ["0.0", "0.0", "0.5"]
    assert small_env("plain").render() is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"budget": {"macs": 0.001}}, ImpossibleBudgetError, "cannot be reached: the smallest is"),
        ({"budget": {"flops": 0.5}}, BudgetError, "no budget named 'flops'"),
        ({"protect": ["stemm.*"]}, UnknownNameError, "Did you mean 'stem.*'?"),
        ({"protect": ["*"]}, PlanError, "there is nothing to decide: .*protected by --protect"),
        ({"method": Method(criterion="l3")}, UnknownNameError, "no criterion named 'l3'"),
        ({"method": Method(compensation="last-squares")}, UnknownNameError, "'least-squares'"),
        ({"calibration": []}, DataError, "no calibration image"),
        ({"reward": []}, DataError, "no image to evaluate on"),
        ({"first_images": 0}, DataError, "a first stage needs at least one image, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        make_env(**objects(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tensor", ["stem.0.weight", "stem.1.running_var", "head.2.bias"])
def test_weights_and_statistics_that_are_not_finite_are_refused(tensor):
    given = objects()
    given["model"].state_dict()[tensor].view(-1)[1] = math.nan
    with pytest.raises(WeightsError, match=f"{tensor} holds NaN"):
        make_env(**given)


def test_images_that_are_not_finite_are_refused():
    given = objects()
    given["calibration"][0][0][0, 0, 0, 0] = math.inf
    with pytest.raises(DataError, match="finite"):
        make_env(**given)


def test_a_step_after_the_end_asks_for_a_reset(small_env):
    env = small_env()
    result_of(env, [ZERO] * len(env.site_names))
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(ZERO)


def test_a_raw_ratio_is_the_same_whatever_the_budget_while_there_is_room(small_env):
    action = np.array([1.0, 1 / 9], dtype=np.float32)  # half of the group, of at most nine tenths
    for macs in (0.6, 0.8, 1.0):
        env = small_env("plain", actions="raw", budget={"macs": macs})
        plan = result_of(env, [action] * 2)["plan"]
        assert plan["0.0"] == plan["1.0"] == {"static_ratio": 0.5, "runtime_ratio": 0.0}


@settings(max_examples=25)
@given(st.sampled_from(["residual", "projected", "concat", "grouped"]), st.integers(0, 1000))
def test_raw_actions_never_end_above_the_budget(network, seed):
    env = make_small_env(network, actions="raw", budget={"macs": 0.5})
    result = result_of(env, random_actions(env, seed))
    assert result["shares"]["macs"] <= 0.5
    assert not any(one.get("runtime_ratio", 0.0) for one in result["plan"].values())


def test_raw_actions_may_end_below_the_budget_which_centred_ones_use_up(small_env):
    most = {
        mode: result_of(env, [(0.0, 1.0)] * len(env.site_names))["shares"]["macs"]
        for mode in ("raw", "centred")
        for env in [small_env("projected", actions=mode, budget={"macs": 0.7})]
    }
    assert most["raw"] < 0.2
    assert most["centred"] > 0.65


def test_a_wall_keeps_raw_actions_that_prune_nothing_within_the_budget(small_env):
    env = small_env("projected", actions="raw", budget={"macs": 0.5})
    result = result_of(env, [(0.0, -1.0)] * len(env.site_names))
    assert 0.4 < result["shares"]["macs"] <= 0.5
    static = [one["static_ratio"] for one in result["plan"].values()]
    assert static[0] == 0.0  # the later groups pay for it
    assert max(static) > 0.5


def test_where_a_runtime_action_has_an_effect_is_known(small_env):
    assert small_env("residual").admitted.tolist() == [[False, True], [True, True]]
    assert (
        small_env("residual", limits=Limits({"runtime_ratio": 0.0})).admitted.tolist() == [[False, True]] * 2
    )
    assert small_env("residual", actions="raw").admitted.tolist() == [[False, True]] * 2


@pytest.mark.usefixtures("features_alone")
def test_each_episode_of_a_range_keeps_to_the_budget_it_draws_and_a_seed_repeats_them(small_env):
    def budgets(env, seed):
        found = []
        for number in range(12):
            observation, _ = env.reset(seed=None if number else seed)
            drawn = features_of(env, observation).budget_macs
            for _ in env.site_names:
                *_, info = env.step(ZERO)
            assert drawn - 0.1 < info["episode_result"]["shares"]["macs"] <= drawn + 1e-6
            found.append(round(float(drawn), 6))
        return found

    env, other = (small_env("projected", budget=RANGE) for _ in range(2))
    assert budgets(env, 3) == budgets(other, 3) != budgets(other, 4)
    assert set(budgets(env, 5)) <= {round(0.4 + 0.05 * i, 6) for i in range(11)}


def test_the_tightest_budget_of_a_range_must_be_possible():
    budget = BudgetRange(Budget({"macs": 0.001}), Budget({"macs": 0.9}))
    with pytest.raises(ImpossibleBudgetError, match=r"macs=0\.001 cannot be reached"):
        make_small_env(budget=budget)


@pytest.mark.parametrize("round_to", [1, 4])
def test_a_plan_is_evaluated_as_it_is_carried_out(small_env, round_to):
    env = small_env("projected", method=Method(round_to=round_to), budget={"macs": 0.95})
    plan = {"layer3.0.conv1": {"static_ratio": 0.4}}  # 6 of 10 units: 8 in multiples of 4
    result = env.problem.evaluate(plan)
    assert result["plan"]["layer3.0.conv1"]["static_ratio"] == pytest.approx(0.4 if round_to == 1 else 0.2)
    model, _, _ = labelled("projected")
    assert counted_params(env.problem.apply(plan)) / counted_params(model) == result["shares"]["params"] < 1.0
    assert env.problem.evaluate(result["plan"]) == result


def test_evaluating_a_plan_is_an_episode_that_ends_with_it(small_env):
    env = small_env("projected")
    result = result_of(env, random_actions(env))
    del result["reward"]["expected"]  # before it was carried out, which here it is at once
    assert small_env("projected").problem.evaluate(result["plan"]) == result
    with pytest.raises(UnknownNameError, match="no site named 'conv7'"):
        env.problem.evaluate({"conv7": {"static_ratio": 0.5}})


@pytest.mark.usefixtures("features_alone")
def test_what_is_known_of_each_group_is_plain_data(small_env):
    env = small_env("plain")
    facts = env.problem.site_summary()
    assert json.loads(json.dumps(facts)) == facts
    macs = [9 * 3 * 6 * 36, 9 * 6 * 8 * 9, 8 * 5]
    params = [9 * 3 * 6 + 12, 9 * 6 * 8 + 16, 8 * 5 + 5]
    assert [(one["name"], one["units"]) for one in facts] == [("0.0", 6), ("1.0", 8)]
    assert [one["macs_share"] for one in facts] == pytest.approx(
        [(macs[0] + macs[1]) / sum(macs), (macs[1] + macs[2]) / sum(macs)]
    )
    assert [one["params_share"] for one in facts] == pytest.approx(
        [(params[0] + 9 * 6 * 8) / sum(params), (params[1] + 8 * 5) / sum(params)]
    )
    seen = features_of(env, env.reset()[0])
    assert [math.sqrt(error) for error in facts[0]["errors"]] == pytest.approx(
        [seen.static_ratio_error_25, seen.static_ratio_error_50, seen.static_ratio_error_75], rel=1e-6
    )
    assert math.sqrt(facts[0]["loo_gain"]) == pytest.approx(seen.loo_gain, rel=1e-6)


def test_a_score_function_is_what_an_episode_is_rewarded_by(small_env):
    asked = []

    def score(model):
        asked.append(model)
        return float(sum(parameter.detach().abs().sum() for parameter in model.parameters()))

    env = small_env(reward=None, score=score)
    uniform = env.problem.evaluate(env.problem.allocation("uniform"))
    assert uniform["reward"]["total"] == pytest.approx(math.exp(-1))
    whole = score(env.problem.network.model)
    left = score(env.problem.apply(uniform["plan"]))
    assert uniform["reward"]["score"] == pytest.approx(left)
    assert uniform["reward"]["loss"] == pytest.approx((whole - left) / whole)
    assert uniform["accuracy"] is None
    assert env.problem.validate(uniform["plan"]) == pytest.approx(left)
    count = len(asked)
    assert env.problem.evaluate(uniform["plan"]) == uniform
    assert len(asked) == count  # looked up
    assert [0 <= fact["loo_gain"] <= 1 for fact in env.problem.site_summary()]
    assert len(asked) == count + len(env.site_names)


@pytest.mark.parametrize("settings", [{"reward": None}, {"score": lambda model: 1.0}])
def test_plans_are_scored_by_images_or_by_a_function(small_env, settings):
    with pytest.raises(DataError, match=r"score function"):
        small_env(**settings)


class TestImagined:
    def test_its_episodes_end_with_what_is_predicted(self, small_env):
        env, asked = small_env("projected"), []

        def predict(plan, expected):
            asked.append((plan, expected))
            return 0.25

        actions = random_actions(env)
        real, imagined = result_of(env, actions), result_of(env.surrogate_env(predict), actions)
        assert asked == [(imagined["plan"], real["reward"]["expected"])]
        assert imagined["plan"] == real["plan"]
        assert imagined["shares"] == real["shares"]
        assert imagined["reward"]["reference"] == real["reward"]["reference"]
        assert imagined["reward"]["loss"] == pytest.approx(0.25 * real["reward"]["reference"])
        assert imagined["reward"]["total"] == pytest.approx(math.exp(-0.25))
        assert imagined["reward"]["estimated"]

    def test_nothing_is_carried_out_but_uniform_pruning_once(self, small_env, monkeypatch):
        env = small_env(dense_reward=True)
        applied = []
        compress = env.problem.network.apply
        monkeypatch.setattr(
            env.problem.network, "apply", lambda plan: applied.append(plan.to_dict()) or compress(plan)
        )
        env.reset()  # measures what it observes
        applied.clear()
        twins = [env.surrogate_env(lambda plan, expected: 0.1) for _ in range(2)]
        for twin in (*twins, *twins):
            result_of(twin, random_actions(env))
        assert applied == [env.problem.allocation("uniform")]

    def test_its_episodes_are_its_own(self, small_env):
        span = BudgetRange(Budget({"macs": 0.4}), Budget({"macs": 0.9}))
        env = small_env(budget=span, render_mode="ansi")
        env.reset(seed=0)
        env.step(np.zeros(2, np.float32))
        before, state = env.render(), env.episode_state()
        twin = env.surrogate_env(lambda plan, expected: 0.1)
        observations = [twin.reset()[0] for _ in range(12)]
        assert len({observation.tobytes() for observation in observations}) > 1  # of several budgets
        result_of(twin, random_actions(env))
        assert (env.render(), env.episode_state()) == (before, state)
        result_of(env, random_actions(env))
        assert env.episode_state() != twin.episode_state()
