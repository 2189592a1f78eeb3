import pytest

from prunegym.envs import Limits
from prunegym.envs.description import describe
from prunegym.pruning.errors import PruningError
from prunegym.pruning.method import Method
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import counted_macs


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path))  # where a latency table would lie
    example = EXAMPLES["residual"]
    return example.model(), example.images(1, 0)


def test_groups_and_reachable_budgets_are_plain_data(network):
    model, images = network
    found = describe(model, images.shape[1:])
    assert found["macs"] == counted_macs(model, images[0])
    assert set(found["groups"][0]) == {"name", "units", "layers", "macs_share", "frozen", "ungated"}
    assert list(found["budgets"]) == ["macs", "params", "bytes", "bops"]
    assert all(0 < low < high == 1 for low, high in found["budgets"].values())


def test_frozen_groups_have_a_reason_and_save_nothing(network):
    model, images = network
    first = next(one["name"] for one in describe(model, images.shape[1:])["groups"] if not one["frozen"])
    found = describe(model, images.shape[1:], protect=[first])
    group = next(one for one in found["groups"] if one["name"] == first)
    assert (group["frozen"], group["macs_share"]) == ("protected by --protect", None)
    everything = describe(model, images.shape[1:], protect=["*"])
    assert everything["budgets"] == {}


def test_limits_decide_what_can_be_reached(network):
    model, images = network

    def smallest(**settings):
        return describe(model, images.shape[1:], **settings)["budgets"]["macs"][0]

    assert (
        smallest()
        < smallest(limits=Limits({"static_ratio": 0.5}))
        < smallest(limits=Limits({"static_ratio": 0.2}))
    )
    with pytest.raises(PruningError, match="compensation"):
        smallest(method=Method(compensation="least-square"))


def test_layers_in_modules_that_are_not_followed_are_named():
    example = EXAMPLES["untraceable-block"]
    model, images = example.model(), example.images(1, 0)
    found = describe(model, images.shape[1:])
    reason = "Branching is not followed: it branches on what a tensor holds"
    assert found["unfollowed"]["layers"] == {"block.1.conv": reason}
    inside = counted_macs(model.block[1], model.block[0](model.inner(model.stem(images)))[0])
    assert found["unfollowed"]["macs_share"] == inside / counted_macs(model, images[0])


def test_where_all_is_followed_there_are_none(network):
    model, images = network
    assert describe(model, images.shape[1:])["unfollowed"] == {"layers": {}, "macs_share": 0.0}
