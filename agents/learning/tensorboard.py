"""TensorBoard curves and pictures of a run, in addition to those that Stable-Baselines3 writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import get_latest_run_id
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

from prunegym.agents.episode_log import EpisodeLog
from prunegym.agents.history import EpisodeHistory
from prunegym.agents.pictures import figure_pixels, pareto_figure, plan_bars_figure, plans_heatmap
from prunegym.agents.pictures.plan_table import plan_cells
from prunegym.agents.rollout import EpisodeResult


class TensorBoardCallback(BaseCallback):
    """Writes rewards, costs and ratios of each episode and, every OVERVIEW_EVERY episodes, pictures.

    The x axis counts environment steps, as in Stable-Baselines3's own curves. Without a TensorBoard log
    nothing is written.

    Args:
        history: the history of the run.
        hyperparameters: hyper-parameters to show, as plain data.
        log: all plans evaluated so far, for the picture of score against cost; None for no such picture.
        uniform: result of the uniform plan, for the picture of the best plan's ratios; None for no such
            picture.
    """

    OVERVIEW_EVERY = 40  # episodes; drawing takes about a second

    def __init__(
        self,
        history: EpisodeHistory,
        hyperparameters: Mapping[str, Any],
        *,
        log: EpisodeLog | None = None,
        uniform: EpisodeResult | None = None,
    ) -> None:
        super().__init__()
        self._history = history
        self._hyperparameters = hyperparameters
        self._log = log
        self._uniform = uniform
        self._drawn = history.episodes
        self._writer: SummaryWriter | None = None

    def write_episode(self, result: EpisodeResult) -> None:
        """Write the scalars of the episode that the history counted last."""
        if self._writer is None:
            return
        for tag, value in self._scalars(result).items():
            self._writer.add_scalar(tag, value, self._history.steps)
        self._writer.flush()  # an episode can take minutes, so its curves should appear at once

    def write_overview(self) -> None:
        """Write the pictures of all episodes so far and the best plan as a table."""
        if self._writer is None:
            return
        for name, picture in self._pictures().items():
            self._writer.add_image(f"prune/{name}", picture, self._history.steps, dataformats="HWC")
        self._writer.add_text("prune/best_plan", best_plan_table(self._history), self._history.steps)
        self._writer.flush()
        self._drawn = self._history.episodes

    def _pictures(self) -> dict[str, NDArray[np.uint8]]:
        history = self._history
        pictures = {"heatmap": plans_heatmap(history.sites, history.plans)}
        if self._log is not None:
            pictures["pareto"] = figure_pixels(pareto_figure(self._log.entries()))
        if self._uniform is not None and history.best is not None:
            bars = plan_bars_figure(history.sites, self._uniform.plan, history.best.plan, name="best so far")
            pictures["bars"] = figure_pixels(bars)
        return pictures

    def close(self) -> None:
        """Close the log; nothing more can be written."""
        if self._writer is not None:
            self.logger.close()

    def _on_training_start(self) -> None:
        formats = tensorboard_formats(self.logger)
        if not formats:
            return
        self._writer = formats[0].writer
        hide_events_from(self._writer, self._history.steps + 1)
        hparams = HParam(flatten(self._hyperparameters), {"reward/best": 0.0})
        formats[0].write({"hparams": hparams}, {"hparams": ()})

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # else the records of the last update would be written after the next one, and a checkpoint lose them
        self.logger.dump(self.num_timesteps)

    _on_training_end = _on_rollout_start

    def _on_rollout_end(self) -> None:
        if self._history.episodes - self._drawn >= self.OVERVIEW_EVERY:
            self.write_overview()

    def _scalars(self, result: EpisodeResult) -> dict[str, float]:
        best = self._history.best
        scalars = {f"reward/{part}": value for part, value in result.reward.items() if part != "total"}
        scalars |= {"reward/last": result.total, "reward/best": best.total if best else result.total}
        scalars |= {f"prune/{measure}": share for measure, share in result.shares.items()}
        scalars["episode"] = self._history.episodes
        if result.accuracy is not None:
            scalars["prune/accuracy"] = result.accuracy
        for site, decision in result.plan.items():
            scalars |= {f"{key}/{site}": amount for key, amount in decision.items()}
        return scalars


def tensorboard_formats(logger: Logger) -> list[TensorBoardOutputFormat]:
    """Return the TensorBoard outputs of a logger: one or none."""
    return [entry for entry in logger.output_formats if isinstance(entry, TensorBoardOutputFormat)]


def continues_curves(model: BaseAlgorithm, name: str, *, resume: bool) -> bool:
    """Return True if a model continues the curves of an earlier run."""
    if model.num_timesteps > 0:  # it was restored from a checkpoint
        return True
    # a run that was interrupted before its first checkpoint has curves too
    return bool(resume and model.tensorboard_log and get_latest_run_id(model.tensorboard_log, name))


def hide_events_from(writer: SummaryWriter, step: int) -> None:
    """Tell TensorBoard to drop the events from a step on, written by an interrupted run."""
    assert writer.file_writer is not None
    restart = Event(step=step, session_log=SessionLog(status=SessionLog.START))
    writer.file_writer.add_event(restart)


def best_plan_table(history: EpisodeHistory) -> str:
    """Return the best plan so far as a Markdown table."""
    if history.best is None:
        return "no episode yet"
    keys, cells = plan_cells(history.best.plan)
    lines = [["site", *keys], ["---"] * (1 + len(keys)), *([site, *row] for site, row in cells.items())]
    head = f"Episode {history.best_episode}, reward {history.best.total:.4f}"
    return "\n".join([head, "", *(f"| {' | '.join(line)} |" for line in lines)])


def log_nowhere_(model: BaseAlgorithm) -> None:
    """Set a logger that writes nothing in a model without a TensorBoard log, in place.

    Stable-Baselines3's own writes nothing either, but creates a folder among the temporary files.
    """
    model.set_logger(Logger(folder=None, output_formats=[]))


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float | None]:
    """Return nested plain data as one level, `a.b` for b inside a; values other than numbers become text.

    Example:
        >>> flatten({"gamma": 1.0, "policy_kwargs": {"net_arch": [64, 64]}})
        {'gamma': 1.0, 'policy_kwargs.net_arch': '[64, 64]'}
    """
    flat: dict[str, bool | str | float | None] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
