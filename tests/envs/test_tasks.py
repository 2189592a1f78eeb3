from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_for_gymnasium
from safetensors.torch import save_file
from stable_baselines3.common.env_checker import check_env as check_for_sb3
from torch import nn

import prunegym.envs.objectives
import prunegym.envs.tasks
from prunegym.envs import TASKS, Budget, LayerPruningEnv, NetworkSource, count_classes, load_task, make_env
from prunegym.envs.scoring import N_LOO_IMAGES
from prunegym.pruning.errors import DataError, UnknownNameError, WeightsError
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from tests.pruning.example_networks import randomised

HALF = Budget({"macs": 0.5})


@pytest.fixture
def _untrained_digits(monkeypatch):
    """Stands in for the trained network, whose training takes half a minute."""
    network = resolve_network("digits_resnet")
    monkeypatch.setattr(prunegym.envs.tasks, "dense_digits", lambda progress: randomised(network.build()))


@pytest.mark.usefixtures("_untrained_digits")
def test_both_checkers_are_silent_on_the_task_by_name():
    env = gym.make("prunegym/LayerPruning-v0", task="digits")
    assert isinstance(env.unwrapped, LayerPruningEnv)
    check_for_gymnasium(env.unwrapped)
    check_for_sb3(env.unwrapped)


@pytest.mark.usefixtures("_untrained_digits")
def test_settings_override_the_tasks_own():
    task = TASKS["digits"]()
    env = make_env(task, budget={"macs": 0.9}, protect=["layer2*", "layer3*"])
    assert env.site_names == ("conv1", "layer1.0.conv1", "layer1.1.conv1")
    env.reset()
    for _ in env.site_names:
        *_, info = env.step(np.zeros(2, dtype=np.float32))
    assert 0.8 < info["episode_result"]["shares"]["macs"] <= 0.9


@pytest.mark.usefixtures("_untrained_digits")
def test_the_digits_task_is_ready_to_use():
    task = TASKS["digits"]()
    assert not task.model.training
    assert (task.network.name, task.budget.shares) == ("digits_resnet", {"macs": 0.2})
    assert len(task.splits.reward) > 200


@pytest.mark.usefixtures("_untrained_digits")
def test_plans_are_validated_on_the_validation_images():
    task = TASKS["digits"]()
    with torch.no_grad():
        right = task.model(task.splits.validation.images).argmax(1) == task.splits.validation.labels
    assert make_env(task).problem.validate({}) == pytest.approx(float(right.double().mean()), abs=1e-12)


@pytest.mark.usefixtures("_untrained_digits")
def test_plans_are_scored_on_draws_unless_first_images_are_asked_for(monkeypatch):
    task = TASKS["digits"]()
    judged, predictions = [], prunegym.envs.objectives.predictions

    def counted(model, batches):
        logits, labels = predictions(model, batches)
        judged.append(len(labels))
        return logits, labels

    monkeypatch.setattr(prunegym.envs.objectives, "predictions", counted)
    few, many = len(task.splits.reward), len(task.splits.to_draw_from)
    assert many > 2 * few
    plans = [{}, {"layer1.0.conv1": {"static_ratio": 0.5, "runtime_ratio": 0.0}}]
    make_env(task).problem.evaluate(plans[0])
    # the dense network on all and on the first ones; uniform pruning, the plan, the anchor of its draw
    assert sorted(judged) == sorted([many, N_LOO_IMAGES, many, few, many])
    judged.clear()
    make_env(task, first_images=50).problem.evaluate(plans[1])
    assert max(judged) == few


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match=r"no task named 'digit'.*'digits'"):
        make_env("digit")


def test_weights_are_loaded(tmp_path):
    model = randomised(resolve_network("digits_resnet").build())
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    task = load_task(
        NetworkSource("digits_resnet", weights=tmp_path / "w.safetensors"), data="digits", budget=HALF
    )
    images = task.splits.test.images[:5]
    with torch.no_grad():
        assert torch.equal(task.model(images), model(images))


def test_an_untrained_network_is_refused(tmp_path):
    np.savez(
        tmp_path / "d.npz",
        train_images=np.zeros((40, 32, 32, 3), np.uint8),
        train_labels=np.zeros(40, np.int64),
        test_images=np.zeros((4, 32, 32, 3), np.uint8),
        test_labels=np.zeros(4, np.int64),
    )
    with pytest.raises(WeightsError, match="cifar_resnet20 is untrained: name its trained weights"):
        load_task("cifar_resnet20", data=f"npz:{tmp_path / 'd.npz'}", budget=HALF)


TRAINED = """
import torch

def make():
    torch.manual_seed(3)
    layers = torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10)
    return torch.nn.Sequential(*layers)

def diverged():
    model = make()
    model[1].weight.data[0] = float("nan")
    return model
"""


class TestWeightsOfTheFactory:
    @pytest.fixture
    def file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "net.py").write_text(TRAINED)
        return tmp_path / "net.py"

    def source(self, name):
        return NetworkSource(name, Path("factory"), input_size=(1, 8, 8))

    def test_are_those_that_it_returns(self, file):
        task = load_task(self.source(f"{file}:make"), data="digits", budget=HALF)
        torch.manual_seed(3)
        assert torch.equal(task.model[1].weight, torch.nn.Sequential(torch.nn.Linear(64, 8))[0].weight)

    def test_must_be_finite(self, file):
        with pytest.raises(WeightsError, match=r"factory: 1\.weight holds NaN or infinity"):
            load_task(self.source(f"{file}:diverged"), data="digits", budget=HALF)

    def test_are_no_weights_of_networks_by_name(self, file):
        with pytest.raises(WeightsError, match="digits_resnet is built with random weights"):
            load_task(NetworkSource("digits_resnet", Path("factory")), data="digits", budget=HALF)

    def test_a_file_of_that_name_comes_first(self, file):
        Path("factory").touch()
        with pytest.raises(WeightsError, match="factory is an empty file"):
            load_task(self.source(f"{file}:make"), data="digits", budget=HALF)

    def test_are_named_where_weights_are_missing(self, file):
        with pytest.raises(WeightsError, match="or --weights factory if the function trains or loads it"):
            load_task(NetworkSource(f"{file}:make", input_size=(1, 8, 8)), data="digits", budget=HALF)


def test_the_embedded_weights_are_for_the_digits_alone(tmp_path):
    np.savez(
        tmp_path / "d.npz",
        train_images=np.zeros((40, 8, 8), np.uint8),
        train_labels=np.zeros(40, np.int64),
        test_images=np.zeros((4, 8, 8), np.uint8),
        test_labels=np.zeros(4, np.int64),
    )
    with pytest.raises(WeightsError, match="digits_resnet is untrained: name its trained weights"):
        load_task("digits_resnet", data=f"npz:{tmp_path / 'd.npz'}", budget=HALF)


def spec(shape=(1, 8, 8)):
    return NetworkSpec("a.py:net", nn.Identity, shape, (0.0,) * shape[0], (1.0,) * shape[0])


def test_the_classes_are_counted_on_an_image():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    assert count_classes(net, spec()) == 7


def test_a_network_that_does_not_run_on_its_input_size_is_refused_in_one_line():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(
        DataError, match=r"does not run on an image of shape \[3, 8, 8\].*--input-size"
    ) as caught:
        count_classes(net, spec((3, 8, 8)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.complex64])
def test_a_network_of_other_numbers_than_images_is_refused(dtype):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 7, dtype=dtype))
    with pytest.raises(DataError, match=r"does not run on .*; build it in float32, as images are"):
        count_classes(net, spec())


def test_a_network_that_converts_its_images_is_taken():
    class Converting(nn.Linear):
        def forward(self, images):
            return super().forward(images.flatten(1).double())

    assert count_classes(Converting(64, 7, dtype=torch.float64), spec()) == 7


@pytest.mark.parametrize("net", [nn.Conv2d(1, 2, 3), nn.LSTM(8, 4)])
def test_a_network_that_gives_no_logits_is_refused(net):
    with pytest.raises(DataError, match=r"logits of shape|does not run"):
        count_classes(net, spec())
