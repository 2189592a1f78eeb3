"""Named tasks: a trained network, its images, and a budget."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.envs.action import ActionMode
from prunegym.envs.budget import Budget, BudgetRange
from prunegym.envs.layer_pruning import LayerPruningEnv
from prunegym.envs.problem import ProblemConfig, PruningProblem
from prunegym.pruning.calibration.statistics import CalibrationInputs, real_images
from prunegym.pruning.calibration.synthesis import SYNTHESES, SyntheticSplits
from prunegym.pruning.data import Images, ImageSplits, check_labels, load_splits
from prunegym.pruning.errors import DataError, WeightsError, one_line
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.metrics import ScoreFunction
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from prunegym.pruning.networks.weights import built_with
from prunegym.pruning.registry import Registry, unknown_name
from prunegym.pruning.training.dense import dense_digits

DIGITS_BUDGET: Mapping[str, float] = {"macs": 0.2}  # tight enough that the allocation matters


@dataclass(frozen=True)
class Task:
    """A trained network, its images, and what may remain of it."""

    network: NetworkSpec
    model: nn.Module  # in evaluation mode
    splits: ImageSplits | SyntheticSplits
    calibration: CalibrationInputs
    budget: Budget | BudgetRange
    score: ScoreFunction | None = None  # takes the place of images wherever plans are scored

    @property
    def test_metric(self) -> Images | ScoreFunction:
        """What results are reported on: test images, or the score function."""
        return self.splits.test if self.score is None else self.score


TASKS: Registry[Callable[[], Task]] = Registry("task")


@TASKS.register("digits")
def digits() -> Task:
    """Return the embedded default: a small residual CNN on scikit-learn's digits; no download."""
    return load_task("digits_resnet", data="digits", budget=Budget(DIGITS_BUDGET))


@dataclass(frozen=True)
class NetworkSource:
    """Where a trained network comes from."""

    name: str  # as `resolve_network` understands it
    # file of trained weights, or "factory", see `built_with`; the embedded default trains itself without
    weights: Path | None = None
    input_size: tuple[int, int, int] | None = None  # (channels, height, width), where the name does not say
    mean: Sequence[float] | None = None  # per channel, of pixels in [0, 1], where the name does not say
    std: Sequence[float] | None = None  # likewise


@dataclass(frozen=True)
class DataSource:
    """Where images come from."""

    spec: str  # as `load_splits` understands it, or "none"
    calibration: str | None = None  # "data", or a name in SYNTHESES; by default data where there is some
    eval_data: str | None = None  # where `spec` is "none": images to report on; they decide nothing
    download: bool = False  # fetch images that are missing, of "cifar10" and "cifar100"


def load_task(
    network: NetworkSource | str,
    *,
    data: DataSource | str,
    budget: Budget | BudgetRange,
    score: ScoreFunction | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Task:
    """Build a task from names.

    Args:
        network: where the network comes from; a name alone will do.
        data: where the images come from; a name alone will do. Without any, `distilled` images calibrate.
        budget: what may remain.
        score: scores plans in place of images, which then serve calibration alone; the network may return
            anything.
        device: where the network goes.
        seed: of the splits.
        progress: show bars while the embedded default trains and while files are read.

    Raises:
        PruningError: a name is unknown, a file missing or damaged, or they do not fit together.
    """
    network = NetworkSource(network) if isinstance(network, str) else network
    data = DataSource(data) if isinstance(data, str) else data
    spec = resolve_network(network.name, input_size=network.input_size, mean=network.mean, std=network.std)
    source = data.calibration or ("distilled" if data.spec == "none" else "data")
    if source != "data":
        SYNTHESES[source]  # unknown names are refused before the work begins
    elif data.spec == "none":
        raise DataError(f"there is no data to calibrate on; choose one of: {', '.join(SYNTHESES)}")
    images = data.eval_data if data.spec == "none" else data.spec
    real = None
    if images:
        real = load_splits(images, spec, seed=seed, download=data.download, progress=progress)
    trained = _trained(spec, network.weights, images, progress=progress).eval().to(device)
    if score is None:
        classes = count_classes(trained, spec)
        if real is not None:
            check_labels(real, classes)
    else:
        _output(trained, spec)
    splits: ImageSplits | SyntheticSplits
    if real is not None and data.spec != "none":
        splits = real
    else:
        splits = SyntheticSplits(trained, spec, seed, progress, real_test=real.test if real else None)
    inputs = (
        real_images(trained, (images for images, _ in splits.calibration.batches()))
        if isinstance(splits, ImageSplits) and source == "data"
        else SYNTHESES[source](trained, spec.input_shape, seed=seed, progress=progress)
    )
    return Task(spec, trained, splits, inputs, budget, score)


def _trained(network: NetworkSpec, weights: Path | None, images: str | None, *, progress: bool) -> nn.Module:
    if weights is not None:
        return built_with(network, weights)
    if trains_itself(network.name, images):
        return dense_digits(progress=progress)
    own = " FILE, or --weights factory if the function trains or loads it" if ":" in network.name else ""
    raise WeightsError(f"{network.name} is untrained: name its trained weights with --weights{own}")


def trains_itself(model: str, images: str | None) -> bool:
    """Whether a network needs no file of weights: the embedded default, on its own images or on none."""
    return model == "digits_resnet" and images in (None, "digits")


def count_classes(model: nn.Module, network: NetworkSpec) -> int:
    """Return how many logits a network gives for one image.

    Raises:
        DataError: it does not run on an image of that shape, or its output is not one row of logits.
    """
    logits = _output(model, network)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise DataError(f"{network.name} must return logits of shape [images, classes] for a batch of images")
    return logits.shape[1]


@torch.inference_mode()
def _output(model: nn.Module, network: NetworkSpec) -> Any:
    """Return what a network gives for one image.

    Raises:
        DataError: it does not run on an image of that shape, float32 as all images are.
    """
    image = torch.zeros((1, *network.input_shape), device=next(model.parameters()).device)
    try:
        return model(image)
    except Exception as error:  # a stranger's forward may raise anything
        raise_machine_failure(error)
        others = {parameter.dtype for parameter in model.parameters()} - {image.dtype}
        way_out = "build it in float32, as images are" if others else "give the right --input-size"
        raise DataError(
            f"{network.name} does not run on an image of shape {list(network.input_shape)} "
            f"({one_line(error)}); {way_out}"
        ) from error


def task_problem(task: Task, **settings: Any) -> PruningProblem:
    """Return the problem that a task poses.

    Args:
        task: a trained network, its images, and a budget.
        settings: arguments of `PruningProblem.from_model` and fields of `ProblemConfig`, by name; they
            override the task's.

    Raises:
        PruningError: a setting is unknown or refused.
    """
    given: dict[str, Any] = {"calibration": task.calibration, "budget": task.budget}
    if task.score is not None:
        given["score"] = task.score
    elif "reward" not in settings:  # asked for only then: synthetic images are made when they are
        given |= _scoring_images(task.splits, drawn=settings.get("first_images") is None)
    return _problem_of(task.model, **{**given, **settings})


def _scoring_images(splits: ImageSplits | SyntheticSplits, *, drawn: bool) -> dict[str, Any]:
    """Return the images that plans are scored and chosen by, as settings of a problem."""
    chosen = {"validation": list(splits.validation.batches())}
    if isinstance(splits, SyntheticSplits):
        return {**chosen, "reward": list(splits.reward.batches()), "goal": "accuracy"}
    if not drawn:
        return {**chosen, "reward": list(splits.reward.batches())}
    images = splits.to_draw_from
    return {**chosen, "reward": [(images.images, images.labels)], "drawn_images": len(splits.reward)}


def _problem_of(model: nn.Module, **settings: Any) -> PruningProblem:
    """Return the problem of a model from flat settings; see `task_problem`."""
    rare = {one.name for one in fields(ProblemConfig)}
    known = {*inspect.signature(PruningProblem.from_model).parameters, *rare} - {"model"}
    for name in settings:
        if name not in known:
            raise unknown_name("setting of a pruning problem", name, known)
    config = replace(
        settings.pop("config", ProblemConfig()),
        **{name: settings.pop(name) for name in list(settings) if name in rare},
    )
    return PruningProblem.from_model(model, config=config, **settings)


def make_env(
    task: str | Task | None = None,
    *,
    actions: ActionMode = "centred",
    dense_reward: bool = False,
    render_mode: str | None = None,
    **settings: Any,
) -> LayerPruningEnv:
    """Make the environment of a task or of a model: `gym.make("prunegym/LayerPruning-v0", ...)`.

    Args:
        task: a registered name, a Task, or None where `settings` give the model and its images themselves.
        actions: see `LayerPruningEnv`.
        dense_reward: see `LayerPruningEnv`.
        render_mode: see `LayerPruningEnv`.
        settings: arguments of `PruningProblem.from_model` and fields of `ProblemConfig`, by name, such as
            `model=net, calibration=loader, reward=held_out, budget={"macs": 0.5}, protect=("stem*",)`; they
            override the task's.

    Raises:
        PruningError: the task's name is unknown, or a setting is unknown or refused.

    Example:
        env = gym.make("prunegym/LayerPruning-v0", task="digits")
    """
    if task is None:
        if "model" not in settings:
            raise DataError("name a task, or give a model: make_env(model=..., calibration=..., budget=...)")
        problem = _problem_of(**settings)
    else:
        problem = task_problem(TASKS[task]() if isinstance(task, str) else task, **settings)
    return LayerPruningEnv(problem, actions=actions, dense_reward=dense_reward, render_mode=render_mode)
