"""Learning for each input, where the best policy and its price are known."""

import json
import tempfile
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import prunegym.agents.per_input.ppo
from prunegym.agents.errors import AgentError, CheckpointError, HyperparameterError
from prunegym.agents.learning.checkpoints import STATE
from prunegym.agents.per_input.ppo import InputHistory, PerInputRecording, learn_per_input
from prunegym.pruning.files.state import read_state, write_state
from tests.agents.per_input.toy_inputs import GATES, ToyInputs

BUDGET = 0.3  # of which the best policy gives twice as much to hard inputs, for 0.3 * 2 * (1 - 0.3 * 2)
PER_UPDATE, UPDATES = 16, 8
QUICK = {"episodes_per_update": PER_UPDATE, "minibatches": 2, "n_epochs": 2, "policy_kwargs.net_arch": [8]}


def quick(env=None, *, seed=0, episodes=PER_UPDATE * UPDATES, hyperparameters=QUICK, **recording):
    return learn_per_input(
        env or ToyInputs(8),
        episodes=episodes,
        seed=seed,
        hyperparameters=hyperparameters,
        recording=PerInputRecording(**recording),
    )


def assert_same(one, other):
    """Two policies came of the very same run."""
    assert one.history == other.history
    for mine, others in zip(one.layers, other.layers, strict=True):
        assert all(torch.equal(*pair) for pair in zip(mine, others, strict=True))


class Interrupt:
    """Raises at one of the updates, as Ctrl-C would."""

    def __init__(self, at):
        self.left = at

    def __call__(self, record):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _temporary(monkeypatch, tmp_path_factory):
    """Nothing is left among the temporary files, whatever is learned and however it ends."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture
def _saved_often(monkeypatch):
    monkeypatch.setattr(prunegym.agents.per_input.ppo, "SAVE_EVERY", 3)


@pytest.fixture
def interrupted(_saved_often, tmp_path):
    """The folder of a run that ended in its fifth update."""
    with pytest.raises(KeyboardInterrupt):
        quick(checkpoint=tmp_path / "kept", on_update=Interrupt(5))
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def env():
    return ToyInputs(64, budget=BUDGET, first_price=0.0)


@pytest.fixture(scope="module")
def learned(env):
    settings = {"episodes_per_update": 64, "minibatches": 1, "n_epochs": 4}
    rates = {"learning_rate": 0.02, "price_rate": 0.05}
    return learn_per_input(env, episodes=64 * 80, seed=0, hyperparameters=settings | rates)


class TestLearning:
    def test_it_spends_on_the_inputs_that_gain_by_it(self, learned):
        seen = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=np.float32)
        actions, _ = learned.model.predict(seen, deterministic=True)
        assert actions[:2, 0] == pytest.approx([1 - 4 * BUDGET] * 2, abs=0.1)
        assert actions[2:, 0].tolist() == [1.0, 1.0]

    def test_the_mean_cost_ends_at_the_budget_by_the_price_that_keeps_it(self, env, learned):
        last = [update["macs"] for update in learned.history.updates[-20:]]
        assert np.mean(last) == pytest.approx(BUDGET, abs=0.02)
        assert env.price == pytest.approx(2 * BUDGET * (1 - 2 * BUDGET), abs=0.05)

    def test_its_layers_decide_as_the_model_does(self, learned):
        observations = np.random.default_rng(0).random((50, 2), dtype=np.float32)
        expected, _ = learned.model.predict(observations, deterministic=True)
        *hidden, last = [(weight.numpy(), bias.numpy()) for weight, bias in learned.layers]
        found = observations
        for weight, bias in hidden:
            found = np.tanh(found @ weight.T + bias)
        found = (found @ last[0].T + last[1]).clip(-1, 1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert [weight.shape for weight, _ in learned.layers] == [(32, 2), (32, 32), (1, 32)]
        assert len(np.unique(expected)) > 10

    def test_its_layers_are_its_own(self, learned):
        learned.layers[0][0].zero_()
        assert learned.layers[0][0].any()


class TestPrice:
    @pytest.mark.parametrize("budget", [0.2, 0.9])
    def test_rises_with_what_was_overspent_and_falls_with_what_was_not(self, budget):
        env = ToyInputs(8, budget=budget, first_price=1.0)
        updates = quick(env).history.updates
        expected = 1.0
        for update in updates:
            assert update["price"] == pytest.approx(expected)
            expected = max(0.0, expected + 0.2 * (update["macs"] / budget - 1))
        assert env.price == pytest.approx(expected)
        assert (env.price > 1.0) == (budget == 0.2)

    def test_is_never_below_nothing(self):
        env = ToyInputs(8, budget=1.0, first_price=0.01)
        assert quick(env).history.updates[-1]["price"] == 0.0

    def test_its_rate_can_be_chosen(self):
        update, after = quick(hyperparameters=QUICK | {"price_rate": 0.7}).history.updates[:2]
        assert after["price"] == pytest.approx(1.0 + 0.7 * (update["macs"] / 0.5 - 1))


class TestUpdates:
    def test_each_is_announced_and_kept(self):
        announced = []
        history = quick(on_update=announced.append).history
        assert announced == history.updates
        assert len(announced) == UPDATES
        assert [update["episodes"] for update in announced] == [PER_UPDATE * (n + 1) for n in range(UPDATES)]
        assert history.episodes == PER_UPDATE * UPDATES

    def test_each_is_the_mean_over_its_inputs(self, monkeypatch):
        seen, step = [], ToyInputs.step

        def watched(env, actions):
            result = step(env, actions)
            seen.append(result[-1])
            return result

        monkeypatch.setattr(ToyInputs, "step", watched)
        updates = quick().history.updates
        ends = [infos for infos in seen if infos]
        per_update = PER_UPDATE // 8
        for number, update in enumerate(updates):
            mine = ends[number * per_update : (number + 1) * per_update]
            for name in ("macs", "agrees", "loss", "reference"):
                assert update[name] == pytest.approx(np.concatenate([one[name] for one in mine]).mean())
            assert update["macs_std"] == pytest.approx(np.concatenate([one["macs"] for one in mine]).std())

    @pytest.mark.parametrize(("episodes", "spent"), [(1, 16), (16, 16), (17, 32)])
    def test_are_whole(self, episodes, spent):
        assert quick(episodes=episodes).history.episodes == spent

    def test_the_same_seed_gives_the_same_policy_and_another_another(self):
        first, same, other = (quick(seed=seed) for seed in (0, 0, 1))
        assert_same(first, same)
        assert first.history != other.history
        assert not torch.equal(first.layers[0][0], other.layers[0][0])

    def test_the_learning_rate_falls_with_the_episodes(self):
        rates = {"learning_rate": 0.01, "final_learning_rate": 0.0}
        model = quick(hyperparameters=QUICK | rates).model
        # of the last update, which begins when all episodes are through
        assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)

    def test_mistakes_are_refused(self):
        env = ToyInputs(8)
        with pytest.raises(AgentError, match="episodes must be 1 or more"):
            quick(env, episodes=0)
        with pytest.raises(HyperparameterError, match="per-input has no hyper-parameter 'price_rat'"):
            quick(env, hyperparameters={"price_rat": 0.1})
        assert env.seeds == []


@pytest.mark.usefixtures("_saved_often")
class TestResume:
    @pytest.mark.parametrize("at", [1, 3, 4, 5, UPDATES])  # checkpoints come after 3, 6 and 8 updates
    def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(self, tmp_path, at):
        straight, after = ToyInputs(8), ToyInputs(8)
        expected = quick(straight)
        with pytest.raises(KeyboardInterrupt):
            quick(checkpoint=tmp_path, on_update=Interrupt(at))
        torch.manual_seed(99)  # whatever happened in between must not matter
        np.random.seed(99)  # noqa: NPY002
        resumed = quick(after, checkpoint=tmp_path, resume=True)
        assert_same(resumed, expected)
        assert after.price == straight.price
        known = (at - 1) // 3 * 3
        assert after.seeds == ([None] if known else [0])

    def test_only_what_was_not_kept_is_learned_again(self, interrupted):
        again = []
        quick(checkpoint=interrupted, resume=True, on_update=again.append)
        assert [update["episodes"] // PER_UPDATE for update in again] == [4, 5, 6, 7, 8]

    def test_interrupted_again_and_again_it_still_gets_there(self, interrupted):
        for at in (1, 3, 1):
            with pytest.raises(KeyboardInterrupt):
                quick(checkpoint=interrupted, resume=True, on_update=Interrupt(at))
        assert_same(quick(checkpoint=interrupted, resume=True), quick())

    def test_checkpoints_come_after_so_many_updates_and_at_the_end(self, tmp_path):
        kept = []

        def inputs_kept():
            file = tmp_path / STATE
            return read_state(file)[0]["history"]["updates"][-1]["episodes"] if file.exists() else 0

        quick(checkpoint=tmp_path, on_update=lambda record: kept.append(inputs_kept()))
        assert kept == [number // 3 * 3 * PER_UPDATE for number in range(UPDATES)]
        assert inputs_kept() == UPDATES * PER_UPDATE
        assert [path.name for path in tmp_path.iterdir()] == [STATE]

    def test_a_finished_run_is_there_at_once(self, tmp_path):
        done = quick(checkpoint=tmp_path, tensorboard=tmp_path / "log")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        env = ToyInputs(8)
        again = quick(
            env,
            checkpoint=tmp_path,
            resume=True,
            on_update=Interrupt(1),
            tensorboard=tmp_path / "log",
        )
        assert_same(done, again)
        assert env.seeds == []
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_unless_it_is_asked_to_it_begins_anew(self, interrupted):
        announced = []
        quick(checkpoint=interrupted, on_update=announced.append)
        assert len(announced) == UPDATES

    @pytest.mark.parametrize(
        ("other", "expected"),
        [
            ({"seed": 1}, "was made with seed 0, this run has 1; resume with"),
            ({"episodes": 1000}, "was made with episodes 128, this run has 1000"),
            ({"hyperparameters": {}}, "was made with hyperparameters"),
            ({"env": ToyInputs(4)}, "was made with inputs at once 8, this run has 4"),
            ({"env": ToyInputs(8, budget=0.25)}, "was made with budget 0.5, this run has 0.25"),
        ],
    )
    def test_a_checkpoint_of_another_run_is_refused(self, interrupted, other, expected):
        with pytest.raises(CheckpointError, match=expected):
            quick(checkpoint=interrupted, resume=True, **other)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("gate_names", ("early", "last"), "was made with gates"),
            ("observation_version", 2, "was made with observation"),
            ("observation_names", ("easy", "late"), "was made with observation"),
        ],
    )
    def test_a_checkpoint_of_another_network_is_refused(
        self, interrupted, monkeypatch, name, value, expected
    ):
        monkeypatch.setattr(ToyInputs, name, value)
        with pytest.raises(CheckpointError, match=expected):
            quick(checkpoint=interrupted, resume=True)

    def test_a_damaged_checkpoint_is_refused_in_one_line(self, interrupted):
        file = interrupted / STATE
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(CheckpointError, match=rf"^cannot read .*{STATE}.*; remove .* and resume"):
            quick(checkpoint=interrupted, resume=True)

    @pytest.mark.parametrize("history", [{}, [], {"episodes": 3}])
    def test_another_kind_of_history_is_refused(self, interrupted, history):
        record, tensors = read_state(interrupted / STATE)
        write_state(interrupted / STATE, {**record, "history": history}, tensors)
        with pytest.raises(CheckpointError, match=rf"^cannot read .*{STATE}"):
            quick(checkpoint=interrupted, resume=True)

    def test_the_state_that_all_inputs_share_is_kept_once(self, interrupted):
        record, _ = read_state(interrupted / STATE)
        assert len(record["random"]["environments"]) == 1


class TestCurves:
    def curves(self, folder):
        (run,) = folder.iterdir()
        return EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()

    def test_every_update_writes_what_came_of_it(self, tmp_path):
        history = quick(tensorboard=tmp_path).history
        events = self.curves(tmp_path)
        for name in ("macs", "agrees", "loss", "reference", "price", "macs_std", "episodes"):
            found = events.Scalars(f"input/{name}")
            assert [one.value for one in found] == pytest.approx([one[name] for one in history.updates])
            assert [one.step for one in found] == [len(GATES) * one["episodes"] for one in history.updates]
        ratios = [np.mean([events.Scalars(f"runtime/{gate}")[n].value for gate in GATES]) for n in range(3)]
        assert ratios == pytest.approx([1 - one["macs"] for one in history.updates[:3]], rel=1e-5)

    @pytest.mark.usefixtures("_saved_often")
    def test_a_resumed_run_continues_them_without_a_step_twice(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            quick(checkpoint=tmp_path / "kept", tensorboard=tmp_path / "log", on_update=Interrupt(6))
        time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
        resumed = quick(checkpoint=tmp_path / "kept", tensorboard=tmp_path / "log", resume=True)
        found = self.curves(tmp_path / "log").Scalars("input/macs")
        assert [one.step for one in found] == [2 * PER_UPDATE * (n + 1) for n in range(UPDATES)]
        assert [one.value for one in found] == pytest.approx([one["macs"] for one in resumed.history.updates])


def test_a_history_goes_to_json_and_back():
    updates = [{"episodes": 16.0, "macs": 0.1 + 0.2}, {"episodes": 32.0, "macs": 1 / 3}]
    history = InputHistory(updates)
    assert InputHistory(**json.loads(json.dumps(history.to_dict()))) == history
    assert (InputHistory().episodes, history.episodes) == (0, 32)
