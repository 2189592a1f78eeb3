import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from prunegym.agents.learning.amc import AMC, truncated_normal

BEST = np.array([0.6, -0.4, 0.2, 0.8, -0.7])


class FiveSteps(gym.Env):
    """Pays at the fifth step for closeness to the best action of each; before, a lure that must not count."""

    observation_space = gym.spaces.Box(0.0, 1.0, (5,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, rewards=(), steps=5):
        self.rewards = list(rewards)  # of the first episodes, whatever they do
        self.steps = steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.actions = []
        return self._observe(), {}

    def step(self, action):
        self.actions.append(float(action[0]))
        done = len(self.actions) == self.steps
        return self._observe(), self._pay() if done else 7.0, done, False, {}

    def _observe(self):
        return np.eye(6, dtype=np.float32)[len(self.actions), :5]

    def _pay(self):
        closeness = float(1 - np.mean((np.array(self.actions) - BEST[: self.steps]) ** 2))
        return self.rewards.pop(0) if self.rewards else closeness


def without_log(model):
    """Keep Stable-Baselines3 from leaving a folder for the log among the temporary files."""
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


@pytest.fixture
def make():
    """Make an AMC agent on an environment, with a small memory and a short warm-up."""

    def make(env=None, **settings):
        settings = {"seed": 0, "warmup_episodes": 3, "buffer_size": 1000, **settings}
        model = AMC("MlpPolicy", env or FiveSteps(), device="cpu", train_freq=(1, "step"), **settings)
        return without_log(model)

    return make


def stored(model, name):
    return getattr(model.replay_buffer, name)[: model.replay_buffer.size(), 0]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def explore(model, count):
    """Actions drawn in the first state of an episode, [count]."""
    model._last_obs = np.eye(5, dtype=np.float32)[:1].repeat(count, axis=0)
    return model._sample_action(0, None, count)[1][:, 0]


class TestStoredEpisodes:
    def test_every_step_carries_the_last_reward(self, make):
        model = make(FiveSteps([1.0, 3.0, 0.0])).learn(15)
        assert stored(model, "rewards").tolist() == [1.0] * 5 + [3.0] * 5 + [0.0] * 5

    def test_batches_lose_the_moving_average_of_their_means(self, make):
        buffer = make(FiveSteps([1.0])).learn(5).replay_buffer
        rewards = []
        for reward in (1.0, 3.0, 0.0):
            buffer.rewards[:5] = reward
            rewards.append(buffer.sample(2).rewards.flatten().tolist())
        # averages: 1, (1 + 3) / 2 = 2, (2 + 0) / 2 = 1
        assert rewards == [[0.0] * 2, [1.0] * 2, [-1.0] * 2]
        assert buffer.average_reward == 1.0

    def test_the_rest_of_a_step_is_what_happened(self, make):
        env = FiveSteps()
        model = make(env).learn(5)
        np.testing.assert_array_equal(stored(model, "observations"), np.eye(5))
        np.testing.assert_array_equal(stored(model, "next_observations"), np.eye(6)[1:, :5])
        np.testing.assert_array_equal(stored(model, "dones"), [0, 0, 0, 0, 1])
        assert len(set(stored(model, "actions")[:, 0].tolist())) == 5

    def test_an_unfinished_episode_is_held_back_and_ended_by_the_next_call(self, make):
        model = make(FiveSteps([1.0, 3.0])).learn(8)
        assert model.replay_buffer.size() == 5
        model.learn(2, reset_num_timesteps=False)
        assert stored(model, "rewards").tolist() == [1.0] * 5 + [3.0] * 5

    def test_a_run_begun_anew_does_not_finish_another_ones_episode(self, make):
        model = make().learn(8).learn(5)
        np.testing.assert_array_equal(stored(model, "observations"), np.tile(np.eye(5), (2, 1)))

    def test_environments_that_end_apart_are_stored_apart(self, make):
        env = DummyVecEnv([lambda: FiveSteps([4.0], steps=5), lambda: FiveSteps([2.0, 1.0], steps=3)])
        model = make(env).learn(12)  # six steps of each: 3, 3 and 5 are finished
        np.testing.assert_array_equal(
            stored(model, "observations"), np.eye(5)[[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]]
        )
        assert stored(model, "rewards").tolist() == [2.0] * 3 + [4.0] * 5 + [1.0] * 3


class TestExploration:
    @pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (0.7, 0.5), (-1.0, 0.3), (1.0, 1.0)])
    def test_the_noise_is_a_truncated_normal(self, mean, sigma):
        np.random.seed(0)  # noqa: NPY002
        drawn = truncated_normal(np.full(4000, mean), sigma)
        assert np.all(np.abs(drawn) < 1)
        reference = stats.truncnorm((-1 - mean) / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
        assert stats.kstest(drawn, reference.cdf).pvalue > 0.01

    def test_the_smallest_of_draws_stays_in_the_box(self, monkeypatch):
        monkeypatch.setattr(np.random, "uniform", lambda low, high: low)
        drawn = truncated_normal(np.array([0.0, 0.9, 1.0]), 0.01)  # a quantile of zero, at minus infinity
        np.testing.assert_array_equal(drawn, [-1.0, -1.0, -1.0])

    def test_the_warm_up_is_uniform_on_the_box(self, make):
        drawn = explore(make(), 4000)
        assert stats.kstest(drawn, stats.uniform(-1, 2).cdf).pvalue > 0.01

    def test_deviation_shrinks_with_episodes_after_the_warm_up(self, make):
        model = make()
        deviations = []
        for model._episode_num in (3, 23, 43):
            drawn = explore(model, 4000)
            assert np.all(np.abs(drawn) < 1)
            deviations.append(drawn.std())
        # around an actor still near 0: of one truncated at once its deviation, then 0.95 ** 20 and ** 40
        assert deviations == pytest.approx([0.54, 0.95**20, 0.95**40], rel=0.05)

    def test_it_never_dies_of_narrowness(self, make):
        model = make()
        model._episode_num = 100_000  # 0.95 ** 100_000 is zero in floating point
        np.testing.assert_allclose(truncated_normal(BEST.round(), model.sigma), BEST.round(), atol=1e-6)

    def test_the_warm_up_draws_from_the_state_that_checkpoints_restore(self, make):
        model = make()
        drawn = []
        for seed in (1, 2):
            np.random.seed(0)  # noqa: NPY002
            model.action_space.seed(seed)
            drawn.append(explore(model, 5))
        np.testing.assert_array_equal(*drawn)

    def test_noise_and_memory_know_the_box_as_minus_one_to_one(self, make):
        env = FiveSteps()
        env.action_space = gym.spaces.Box(0.0, 10.0, (1,), np.float32)
        model = make(env)
        model._episode_num = 203
        model._last_obs = np.eye(5, dtype=np.float32)
        action, scaled = model._sample_action(0, None, 5)
        np.testing.assert_allclose(action, 5 * (scaled + 1), rtol=1e-6)
        np.testing.assert_allclose(action, model.predict(model._last_obs)[0], atol=5 * 1e-3)


class TestLearning:
    def test_nothing_is_learned_in_the_warm_up_and_each_step_once_thereafter(self, make):
        model = make()
        before = weights(model)
        model.learn(4 * 5 - 1)
        assert torch.equal(weights(model), before)
        model.learn(1, reset_num_timesteps=False)  # ends the first episode after the warm-up
        assert not torch.equal(weights(model), before)
        assert model._n_updates == 1
        model.learn(5, reset_num_timesteps=False)
        assert model._n_updates == 6

    def test_the_published_numbers_are_the_defaults(self):
        model = AMC("MlpPolicy", FiveSteps(), device="cpu")
        assert (model.gamma, model.batch_size, model.tau) == (1.0, 64, 0.01)
        assert (model.warmup_episodes, model.sigma) == (100, 1.0)
        widths = [layer.out_features for layer in model.actor.mu if isinstance(layer, torch.nn.Linear)]
        assert widths == [300, 300, 1]
        assert len(model.critic.q_networks) == 1

    def test_the_actor_keeps_its_own_learning_rate(self, make):
        model = make().learn(21)
        assert model.actor.optimizer.param_groups[0]["lr"] == 1e-4
        assert model.critic.optimizer.param_groups[0]["lr"] == 1e-3

    def test_it_comes_near_the_best_actions(self, make):
        env = FiveSteps()
        model = make(env, warmup_episodes=20).learn(80 * 5)
        found = model.predict(np.eye(5, dtype=np.float32))[0][:, 0]
        # an actor that learns nothing misses by 0.34 in the mean square; ten seeds, by 0.03 to 0.15
        assert np.mean((found - BEST) ** 2) < 0.2


def step(model):
    """Finish the held-back episode and one more from fixed random states; return all that came of it."""
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    model.learn(10, reset_num_timesteps=False)
    buffer = model.replay_buffer
    return weights(model), stored(model, "actions"), stored(model, "rewards"), buffer.average_reward


class TestArchive:
    @pytest.fixture
    def reload(self, tmp_path):
        """Return a model as read from its archive and its memory's."""

        def reload(model, env=None):
            model.save(tmp_path / "model.zip")
            model.save_replay_buffer(tmp_path / "model.pkl")
            loaded = without_log(AMC.load(tmp_path / "model.zip", env or FiveSteps(), device="cpu"))
            loaded.load_replay_buffer(tmp_path / "model.pkl")
            return loaded

        return reload

    @pytest.fixture
    def pair(self, make, reload):
        """A run of six episodes, and itself as read again."""
        model = make().learn(30)
        return model, reload(model)

    def test_the_next_action_and_noise_are_the_same(self, pair):
        model, loaded = pair
        observation = np.eye(5, dtype=np.float32)
        np.testing.assert_array_equal(model.predict(observation)[0], loaded.predict(observation)[0])
        drawn = []
        for each in pair:
            np.random.seed(4)  # noqa: NPY002
            drawn.append(explore(each, 20))
        np.testing.assert_array_equal(*drawn)
        assert model.sigma == loaded.sigma == pytest.approx(0.95**3)

    def test_the_run_goes_on_the_same(self, pair):
        for straight, resumed in zip(*map(step, pair), strict=True):
            np.testing.assert_array_equal(straight, resumed)

    def test_an_episode_cut_by_loading_is_dropped(self, make, reload):
        loaded = reload(make().learn(33))
        loaded.learn(5, reset_num_timesteps=False)
        np.testing.assert_array_equal(stored(loaded, "observations"), np.tile(np.eye(5), (7, 1)))

    def test_the_memory_moves_to_the_device_of_the_run(self, make, reload):
        model = make()
        model.replay_buffer.device = torch.device("meta")
        assert reload(model).replay_buffer.device == torch.device("cpu")

    def test_the_memory_is_kept_once(self, make, reload, tmp_path):
        reload(make(buffer_size=100_000, policy_kwargs={"net_arch": [16, 16]}))
        assert (tmp_path / "model.pkl").stat().st_size > 1e6 > (tmp_path / "model.zip").stat().st_size

    def test_it_goes_on_with_another_number_of_environments(self, make, reload):
        loaded = reload(make().learn(33), DummyVecEnv([FiveSteps] * 2))
        loaded.learn(10, reset_num_timesteps=False)
        assert loaded.replay_buffer.size() == 40
