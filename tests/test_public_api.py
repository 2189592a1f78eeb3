"""What `import prunegym` offers."""

from importlib.metadata import version

import gymnasium as gym
import pytest

import prunegym
from tests.pruning.example_networks import EXAMPLES


def test_every_public_name_is_there_and_listed_once():
    assert len(set(prunegym.__all__)) == len(prunegym.__all__)
    assert all(getattr(prunegym, name) is not None for name in prunegym.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'prunegym' has no attribute 'compres'"):
        prunegym.compres  # noqa: B018
    assert set(prunegym.__all__) <= set(dir(prunegym))


def test_the_version_is_that_of_the_distribution():
    assert prunegym.__version__ == version("prunegym")


def test_the_environments_are_registered_in_their_namespace():
    assert gym.spec("prunegym/LayerPruning-v0").entry_point == "prunegym.envs.tasks:make_env"
    assert gym.spec("prunegym/InputPruning-v0").vector_entry_point is not None


def test_a_network_is_described_without_images():
    example = EXAMPLES["plain"]
    found = prunegym.describe(example.model(), example.input_shape)
    assert [group["name"] for group in found["groups"]]
    assert 0 < found["budgets"]["macs"][0] < 1
