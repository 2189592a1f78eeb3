import io

import numpy as np

from prunegym.agents.history import EpisodeHistory
from prunegym.agents.progress import EpisodeBar
from prunegym.agents.rollout import run_episode


def uniform(observation):
    return np.zeros(2, np.float32)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_on(stream, env, monkeypatch, *, shown=True, history=None):
    monkeypatch.setattr("sys.stderr", stream)
    with EpisodeBar("ppo", episodes=8, shown=shown, history=history) as bar:
        bar.show(run_episode(env, uniform))
    return stream.getvalue()


def test_a_terminal_sees_the_last_and_the_best_reward(env, monkeypatch):
    text = shown_on(Terminal(), env, monkeypatch)
    total = run_episode(env, uniform).total
    assert "1/8" in text
    assert f"last {total:.4f}, best {total:.4f}" in text


def test_a_resumed_bar_starts_where_the_run_stopped(env, monkeypatch):
    history = EpisodeHistory(env.site_names)
    for _ in range(3):
        history.add(run_episode(env, uniform))
    assert "4/8" in shown_on(Terminal(), env, monkeypatch, history=history)


def test_a_file_or_a_quiet_run_sees_nothing(env, monkeypatch):
    assert shown_on(io.StringIO(), env, monkeypatch) == ""
    assert shown_on(Terminal(), env, monkeypatch, shown=False) == ""
