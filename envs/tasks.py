"""Named tasks: a trained network, its images, and a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.envs.budget import Budget, BudgetRange
from prunegym.envs.layer_pruning import LayerPruningEnv
from prunegym.pruning.calibration.statistics import CalibrationInputs, real_images
from prunegym.pruning.calibration.synthesis import SYNTHESES, SyntheticSplits
from prunegym.pruning.data import Images, ImageSplits, check_labels, load_splits
from prunegym.pruning.errors import DataError, WeightsError, one_line
from prunegym.pruning.metrics import ScoreFunction
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from prunegym.pruning.networks.weights import load_weights_
from prunegym.pruning.registry import Registry
from prunegym.pruning.training.dense import dense_digits

DIGITS_BUDGET: Mapping[str, float] = {"macs": 0.2}  # tight enough that the allocation matters


@dataclass(frozen=True)
class Task:
    """A trained network with what decides about it and what objectives it."""

    network: NetworkSpec
    model: nn.Module  # in evaluation mode
    splits: ImageSplits | SyntheticSplits
    calibration: CalibrationInputs
    budget: Budget | BudgetRange
    score: ScoreFunction | None = None  # takes the place of images wherever plans are judged

    @property
    def test_metric(self) -> Images | ScoreFunction:
        """What results are reported by: test images, or the score function."""
        return self.splits.test if self.score is None else self.score


TASKS: Registry[Callable[[], Task]] = Registry("task")


@TASKS.register("digits")
def digits() -> Task:
    """Return the embedded default: a small residual CNN on scikit-learn's digits; no download."""
    return load_task("digits_resnet", data="digits", budget=Budget(DIGITS_BUDGET))


def load_task(
    model: str,
    *,
    data: str,
    budget: Budget | BudgetRange,
    calibration: str | None = None,
    eval_data: str | None = None,
    score: ScoreFunction | None = None,
    weights: Path | None = None,
    input_size: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str = "cpu",
    seed: int = 0,
    download: bool = False,
    progress: bool = False,
) -> Task:
    """Build a task from names.

    Args:
        model: a network as `resolve_network` understands it.
        data: images as `load_splits` understands them, or `none`.
        budget: what may remain.
        calibration: `data`, or a name among SYNTHESES, which need the weights alone. By default the images if
            there are any, else `distilled`.
        eval_data: where `data` is `none`, images to report on; they take no part in any decision.
        score: objectives plans in place of images, which then serve calibration alone; the network may return
            anything.
        weights: a file of trained weights; may be left out for the embedded default, which trains itself.
        input_size: (channels, height, width), where the network's name does not say.
        mean: per channel, of pixels in [0, 1], where the network's name does not say.
        std: likewise.
        device: where the network goes.
        seed: of the splits.
        download: fetch images that are missing, of `cifar10` and `cifar100`.
        progress: show bars while the embedded default trains and while files are read.

    Raises:
        PruningError: a name is unknown, a file missing or damaged, or they do not fit together.
    """
    network = resolve_network(model, input_size=input_size, mean=mean, std=std)
    source = calibration or ("distilled" if data == "none" else "data")
    if source != "data":
        SYNTHESES[source]  # unknown names are refused before the work begins
    elif data == "none":
        raise DataError(f"there is no data to calibrate on; choose one of: {', '.join(SYNTHESES)}")
    spec = eval_data if data == "none" else data
    real = None
    if spec:
        real = load_splits(spec, network, seed=seed, download=download, progress=progress)
    trained = _trained(network, weights, spec, progress=progress).eval().to(device)
    if score is None:
        classes = count_classes(trained, network)
        if real is not None:
            check_labels(real, classes)
    splits: ImageSplits | SyntheticSplits
    if real is not None and data != "none":
        splits = real
    else:
        splits = SyntheticSplits(trained, network, seed, progress, real_test=real.test if real else None)
    inputs = (
        real_images(trained, (images for images, _ in splits.calibration.batches()))
        if isinstance(splits, ImageSplits) and source == "data"
        else SYNTHESES[source](trained, network.input_shape, seed=seed, progress=progress)
    )
    return Task(network, trained, splits, inputs, budget, score)


def _trained(network: NetworkSpec, weights: Path | None, images: str | None, *, progress: bool) -> nn.Module:
    if weights is not None:
        model = network.build()
        load_weights_(model, weights)
        return model
    if trains_itself(network.name, images):
        return dense_digits(progress=progress)
    raise WeightsError(f"{network.name} is untrained: name its trained weights with --weights")


def trains_itself(model: str, images: str | None) -> bool:
    """Whether a network needs no file of weights: the embedded default, on its own images or on none."""
    return model == "digits_resnet" and images in (None, "digits")


@torch.inference_mode()
def count_classes(model: nn.Module, network: NetworkSpec) -> int:
    """Return how many logits a network gives for one image.

    Raises:
        DataError: it does not run on an image of that shape, or its output is not one row of logits.
    """
    parameter = next(model.parameters())
    image = torch.zeros((1, *network.input_shape)).to(parameter)
    try:
        logits = model(image)
    except Exception as error:  # a stranger's forward may raise anything
        raise DataError(
            f"{network.name} does not run on an image of shape {list(network.input_shape)} "
            f"({one_line(error)}); give the right --input-size"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise DataError(f"{network.name} must return logits of shape [images, classes] for a batch of images")
    return logits.shape[1]


def task_env(task: Task, **settings: Any) -> LayerPruningEnv:
    """Return a task's environment; `settings` are arguments of LayerPruningEnv, and override the task."""
    if task.score is not None:
        settings.setdefault("score", task.score)
    elif "reward" not in settings:  # asked for only then: synthetic images are made when they are
        settings |= _images_of(task.splits, drawn=settings.get("first_images") is None) | settings
    return LayerPruningEnv(task.model, **{"calibration": task.calibration, "budget": task.budget, **settings})


def _images_of(splits: ImageSplits | SyntheticSplits, *, drawn: bool) -> dict[str, Any]:
    """Return the images that plans are scored and chosen by, as arguments of LayerPruningEnv."""
    chosen = {"validation": list(splits.validation.batches())}
    if isinstance(splits, SyntheticSplits):
        return {**chosen, "reward": list(splits.reward.batches()), "goal": "accuracy"}
    if not drawn:
        return {**chosen, "reward": list(splits.reward.batches())}
    images = splits.to_draw_from
    return {**chosen, "reward": [(images.images, images.labels)], "drawn_images": len(splits.reward)}


def make_env(task: str | Task | None = None, **settings: Any) -> LayerPruningEnv:
    """Make the environment for `gym.make("prunegym/LayerPruning-v0", ...)`.

    Args:
        task: a registered name, a Task, or None where `settings` give the model and its images themselves.
        settings: arguments of LayerPruningEnv; those given override the task's.

    Raises:
        PruningError: the task's name is unknown, or a setting is refused by LayerPruningEnv.
    """
    if task is None:
        return LayerPruningEnv(**settings)
    return task_env(TASKS[task]() if isinstance(task, str) else task, **settings)
