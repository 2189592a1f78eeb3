import pytest
import torch

from agents.algorithms import ALGORITHMS
from agents.errors import AgentError, CheckpointError, UnknownAlgorithmError
from agents.rollout import run_episode, uniform
from agents.search import random_search
from agents.training import learn


class Interrupt:
    """Raises after so many episodes, as Ctrl-C would."""

    def __init__(self, episodes):
        self.left = episodes

    def __call__(self, result):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def weights(result):
    return torch.cat([parameter.detach().flatten() for parameter in result.model.policy.parameters()])


@pytest.fixture
def interrupted(toy, tmp_path):
    """The folder of a run of 40 episodes that stopped in the 21st."""
    with pytest.raises(KeyboardInterrupt):
        learn(toy(), episodes=40, seed=1, checkpoint=tmp_path, on_episode=Interrupt(21))
    return tmp_path


def test_the_learned_policy_beats_uniform_and_random_search(env, toy):
    learned = learn(env, episodes=150, seed=0)
    found = random_search(toy(), episodes=150, seed=0)[0]
    assert learned.final.total > found.total + 0.03 > run_episode(toy(), uniform).total + 0.1


@pytest.mark.parametrize(
    "episodes", [1, 2, 9, 20]
)  # none learned from; part of a rollout; a whole one; between
def test_exactly_the_asked_episodes_are_evaluated(env, episodes):
    seen = []
    result = learn(env, episodes=episodes, seed=0, on_episode=seen.append)
    assert env.evaluations == len(seen) == result.episodes == episodes
    assert result.final == seen[-1]
    assert result.best.total == max(episode.total for episode in seen[:-1] or seen)


def test_the_last_whole_rollout_is_learned_from(toy):
    without, with_update = (learn(toy(), episodes=episodes, seed=0) for episodes in (8, 9))
    assert not torch.equal(weights(without), weights(with_update))


def test_the_same_seed_gives_the_same_policy_and_another_another(toy):
    first, same, other = (learn(toy(), episodes=12, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(weights(first), weights(same))
    assert not torch.equal(weights(first), weights(other))


def test_an_interrupted_run_resumes_as_if_nothing_had_happened(toy, interrupted):
    env = toy()
    straight = learn(toy(), episodes=40, seed=1)
    torch.manual_seed(99)  # whatever happened in between must not matter
    resumed = learn(env, episodes=40, seed=1, checkpoint=interrupted, resume=True)
    assert torch.equal(weights(straight), weights(resumed))
    assert (straight.best, straight.final) == (resumed.best, resumed.final)
    assert resumed.episodes == 40
    assert env.evaluations == 40 - 16  # two updates of eight episodes were kept


def test_the_best_plan_of_before_the_interruption_is_kept(toy, tmp_path):
    seen = []

    def watch(result):
        seen.append(result)
        if len(seen) == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(toy(), episodes=40, seed=1, checkpoint=tmp_path, on_episode=watch)
    best_before = max(result.total for result in seen[:16])
    resumed = learn(toy(), episodes=17, seed=1, checkpoint=tmp_path, resume=True)
    assert resumed.best.total == best_before


def test_one_checkpoint_is_kept_and_nothing_half_written(interrupted):
    assert sorted(path.name for path in interrupted.iterdir()) == ["model-16.zip", "state.json"]


def test_a_death_while_writing_leaves_the_last_checkpoint(toy, interrupted, monkeypatch):
    def die(*arguments, **keywords):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("agents.checkpoints._random_states", die)  # the archive is written, the state is not
        with pytest.raises(SystemExit):
            learn(toy(), episodes=40, seed=1, checkpoint=interrupted, resume=True)
    resumed = learn(toy(), episodes=40, seed=1, checkpoint=interrupted, resume=True)
    assert torch.equal(weights(resumed), weights(learn(toy(), episodes=40, seed=1)))


def test_resuming_before_the_first_checkpoint_begins_the_run(toy, tmp_path):
    resumed = learn(toy(), episodes=9, seed=0, checkpoint=tmp_path / "none yet", resume=True)
    assert torch.equal(weights(resumed), weights(learn(toy(), episodes=9, seed=0)))


def test_a_checkpoint_of_another_run_is_refused(toy, interrupted):
    with pytest.raises(CheckpointError, match=r"was made with seed 1, this run has 2; resume with"):
        learn(toy(), episodes=40, seed=2, checkpoint=interrupted, resume=True)
    with pytest.raises(CheckpointError, match="was made with groups"):
        learn(toy(3), episodes=40, seed=1, checkpoint=interrupted, resume=True)


def test_a_checkpoint_with_as_many_episodes_is_refused(toy, interrupted):
    with pytest.raises(CheckpointError, match="already holds 16 episodes of 16 in all; ask for more"):
        learn(toy(), episodes=16, seed=1, checkpoint=interrupted, resume=True)


@pytest.mark.parametrize("name", ["state.json", "model-16.zip"])
def test_a_damaged_checkpoint_is_refused_in_one_line(toy, interrupted, name):
    (interrupted / name).write_bytes((interrupted / name).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"^cannot read .*{name}.*; start afresh$"):
        learn(toy(), episodes=40, seed=1, checkpoint=interrupted, resume=True)


def test_unknown_algorithms_and_no_episodes_are_refused(env):
    with pytest.raises(UnknownAlgorithmError):
        learn(env, algorithm="nope", episodes=3, seed=0)
    with pytest.raises(AgentError, match="episodes must be 1 or more"):
        learn(env, episodes=0, seed=0)


@pytest.mark.parametrize("name", list(ALGORITHMS))
class TestEveryAlgorithm:
    def test_it_spends_its_episodes_and_gives_a_model(self, env, name):
        result = learn(env, algorithm=name, episodes=10, seed=0)
        assert env.evaluations == 10
        assert isinstance(result.model, ALGORITHMS[name].model_class)
