import io
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunegym.agents.episode_log import EpisodeLog
from prunegym.agents.learning.tensorboard import TensorBoardCallback, flatten
from prunegym.agents.rollout import run_episode
from tests.agents.conftest import learn

learn_often = partial(learn, hyperparameters={"evaluated_episodes": 8, "imagined_episodes": 64})


def read(folder: Path) -> EventAccumulator:
    (run,) = folder.iterdir()
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


@pytest.fixture
def seen():
    return []


@pytest.fixture
def events(env, tmp_path, seen):
    learn_often(env, episodes=20, seed=0, tensorboard=tmp_path, on_episode=seen.append)
    return read(tmp_path)


def values(events, tag):
    return [event.value for event in events.Scalars(tag)]


def test_every_episode_writes_what_it_decided_and_what_came_of_it(events, seen):
    assert values(events, "reward/last") == pytest.approx([result.total for result in seen])
    assert values(events, "reward/loss") == pytest.approx([result.reward["loss"] for result in seen])
    assert values(events, "prune/accuracy") == pytest.approx([result.accuracy for result in seen])
    assert values(events, "prune/macs") == pytest.approx([0.5] * 20)
    assert values(events, "prune/params") == pytest.approx([0.4] * 20)
    assert values(events, "episode") == list(range(1, 21))
    for kind in ("static_ratio", "runtime_ratio"):
        ratios = [result.plan["layer3.conv"][kind] for result in seen]
        assert values(events, f"{kind}/layer3.conv") == pytest.approx(ratios)


def test_the_best_reward_never_falls_and_ends_at_the_highest(events, seen):
    best = values(events, "reward/best")
    assert best == sorted(best)
    assert best[-1] == pytest.approx(max(result.total for result in seen))


def test_the_x_axis_counts_environment_steps(events):
    assert [event.step for event in events.Scalars("reward/last")] == list(range(5, 101, 5))


def test_the_curves_of_stable_baselines_are_there(events):
    assert {"rollout/ep_rew_mean", "imagined/ep_rew_mean", "train/approx_kl", "time/fps"} <= set(
        events.Tags()["scalars"]
    )


def test_some_updates_and_the_end_draw_a_heat_map_and_the_best_plan(env, tmp_path, seen, monkeypatch):
    monkeypatch.setattr(TensorBoardCallback, "OVERVIEW_EVERY", 16)
    learn_often(
        env, episodes=28, seed=0, tensorboard=tmp_path, on_episode=seen.append
    )  # rounds end after 8, 16, 24
    events = read(tmp_path)
    assert [event.step for event in events.Images("prune/heatmap")] == [80, 140]
    picture = Image.open(io.BytesIO(events.Images("prune/heatmap")[-1].encoded_image_string))
    assert picture.width > 400
    tables = [
        event.tensor_proto.string_val[0].decode() for event in events.Tensors("prune/best_plan/text_summary")
    ]
    best = max(seen, key=lambda result: result.total)
    assert len(tables) == 2
    assert f"Episode {seen.index(best) + 1}, reward {best.total:.4f}" in tables[-1]
    assert f"| layer0.conv | {best.plan['layer0.conv']['static_ratio']:.3f} |" in tables[-1]


def test_a_log_gives_a_picture_of_score_and_cost_and_uniform_pruning_one_of_ratios(env, tmp_path):
    uniform = run_episode(env, lambda observation: np.zeros(2, np.float32))
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    learn_often(env, episodes=3, seed=0, tensorboard=tmp_path / "log", log=log, uniform=uniform)
    tags = read(tmp_path / "log").Tags()["images"]
    assert sorted(tags) == ["prune/bars", "prune/heatmap", "prune/pareto"]


def test_the_hyperparameters_tab_has_its_numbers_and_its_metric(events):
    plugins = events.summary_metadata
    content = {tag: metadata.plugin_data.content for tag, metadata in plugins.items()}
    assert b"learning_rate" in content["_hparams_/session_start_info"]
    assert b"reward/best" in content["_hparams_/experiment"]


def test_without_labels_there_is_no_accuracy_curve(toy, tmp_path):
    learn_often(toy(accuracy=False), episodes=2, seed=0, tensorboard=tmp_path)
    assert "prune/accuracy" not in read(tmp_path).Tags()["scalars"]


def test_a_resumed_run_continues_the_same_curves_without_a_step_twice(toy, tmp_path):
    log, checkpoint = tmp_path / "log", tmp_path / "checkpoint"
    seen = []

    def interrupt(result):
        seen.append(result)
        if len(seen) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_often(toy(), episodes=20, seed=0, tensorboard=log, checkpoint=checkpoint, on_episode=interrupt)
    time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
    learn_often(toy(), episodes=20, seed=0, tensorboard=log, checkpoint=checkpoint, resume=True)
    events = read(log)
    assert [event.step for event in events.Scalars("reward/last")] == list(range(5, 101, 5))
    assert values(events, "episode") == list(range(1, 21))


def test_nested_settings_become_one_level():
    assert flatten({"a": {"b": [1, 2], "c": {"d": True}}, "e": None}) == {
        "a.b": "[1, 2]",
        "a.c.d": True,
        "e": "None",
    }
