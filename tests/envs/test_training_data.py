import torch

from prunegym.envs import Budget, Task
from prunegym.envs.training_data import TrainingData
from prunegym.pruning.calibration.statistics import CalibrationInputs, real_images
from prunegym.pruning.calibration.synthesis import SyntheticSplits
from prunegym.pruning.data import Images, ImageSplits
from prunegym.pruning.networks.registry import NetworkSpec
from tests.pruning.example_networks import EXAMPLES


def numbered(count, start):
    """Images whose labels say which they are."""
    return Images(EXAMPLES["residual"].images(count, start), torch.arange(start, start + count))


SPLITS = ImageSplits(numbered(5, 0), numbered(4, 10), numbered(3, 20), numbered(2, 30), numbered(6, 40))


def labels(images):
    return images.labels.tolist()


def test_all_but_the_test_images_are_learned_from_and_on_request_none_that_validate():
    every = TrainingData.from_splits(SPLITS)
    assert labels(every.images) == [*range(5), *range(10, 14), *range(20, 23), 30, 31]
    assert every.dense is None
    less = TrainingData.from_splits(SPLITS, validate=True)
    assert labels(less.images) == [*range(5), *range(10, 14), *range(20, 23)]
    assert labels(less.validation) == [30, 31]
    assert labels(less.test) == list(range(40, 46))


def task(splits, calibration):
    example = EXAMPLES["residual"]
    model = example.model()
    spec = NetworkSpec(
        "residual", example.model, tuple(example.images(1, 0).shape[1:]), (0.0,) * 3, (1.0,) * 3
    )
    return Task(spec, model, splits(spec, model), calibration(model), Budget({"macs": 0.5}))


def test_a_task_with_images_has_a_network_to_follow():
    some = task(lambda *_: SPLITS, lambda model: real_images(model, [SPLITS.calibration.images]))
    data = TrainingData.from_task(some)
    assert data.dense is some.model
    assert labels(data.images) == labels(TrainingData.from_splits(SPLITS).images)


def test_without_data_the_labels_are_the_dense_networks_answers(monkeypatch):
    noise = EXAMPLES["residual"].images(6, 3)
    made = {"reward": numbered(3, 20), "validation": numbered(2, 30), "test": numbered(6, 40)}
    for name, images in made.items():
        monkeypatch.setattr(SyntheticSplits, name, images)
    some = task(
        lambda spec, model: SyntheticSplits(model, spec, 0, False),
        lambda model: CalibrationInputs((noise[:4], noise[4:]), model),
    )
    answers = some.model(noise).argmax(1).tolist()
    assert labels(TrainingData.from_task(some).images) == [*answers, *range(20, 23), 30, 31]
    assert labels(TrainingData.from_task(some, validate=True).images) == [*answers, *range(20, 23)]
