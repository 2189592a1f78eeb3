"""Every technique on every example network, and every pair of techniques on six of them."""

import itertools

import numpy as np
import pytest
import torch

from prunegym.pruning.products import Term
from prunegym.pruning.storage.export import export_network
from prunegym.pruning.technique import TECHNIQUES as REGISTRY
from prunegym.pruning.technique import Stage
from prunegym.pruning.techniques import TECHNIQUES
from prunegym.pruning.techniques.channels import Channels
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.techniques import conformance
from tests.pruning.techniques.conformance import Case, case

pytestmark = pytest.mark.conformance
NETWORKS = list(EXAMPLES)
SEEDS = range(2)
SIX = ("blocks", "residual", "padded", "concat", "depthwise", "flatten")
PAIRS = list(itertools.combinations(TECHNIQUES, 2))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def admitted(name, *techniques, **settings):
    found = case(name, *techniques, **settings)
    if found is None:
        pytest.skip(f"{' and '.join(techniques)} can decide nothing about {name}")
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("technique", list(TECHNIQUES))
class TestEveryTechnique:
    def test_its_neutral_level_is_the_identity(self, technique, network):
        conformance.check_neutral_is_the_identity(admitted(network, technique))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_its_prices_are_those_counted(self, technique, network, seed):
        conformance.check_prices_are_those_counted(admitted(network, technique), seed)

    def test_its_prices_rise_with_its_levels(self, technique, network):
        conformance.check_prices_rise_with_levels(admitted(network, technique), technique, seed=0)

    def test_its_amounts_convert_both_ways(self, technique, network):
        conformance.check_amounts_convert_both_ways(admitted(network, technique), technique)

    def test_its_record_rebuilds_the_network(self, technique, network):
        conformance.check_a_record_rebuilds_the_network(admitted(network, technique), seed=1)

    def test_its_plans_survive_json(self, technique, network):
        conformance.check_a_plan_survives_json(admitted(network, technique), seed=2)

    def test_it_leaves_the_input_model_alone(self, technique, network):
        conformance.check_the_input_model_is_untouched(admitted(network, technique), seed=3)


@pytest.mark.parametrize("network", SIX)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("techniques", [*((name,) for name in TECHNIQUES), *PAIRS], ids="-".join)
def test_alone_and_in_pairs_they_agree_with_the_uncut_network(techniques, network, seed):
    found = admitted(network, *techniques, compensation="none")
    conformance.check_it_agrees_with_the_uncut_network(found, seed)


@pytest.mark.runs
@pytest.mark.parametrize("technique", list(TECHNIQUES))
def test_the_exported_file_agrees(technique, tmp_path):
    found = admitted("blocks", technique)
    compressed = found.apply(found.space.even_plan({technique: 0.5}))
    paths = {"pt2": tmp_path / "model.pt2"}
    compared = export_network(compressed.model.eval(), paths, EXAMPLES["blocks"].images(8), metadata={})
    assert compared["pt2"].differing == 0


@pytest.mark.parametrize("network", SIX)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
class TestEveryPair:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_prices_are_those_counted(self, pair, network, seed):
        conformance.check_prices_are_those_counted(admitted(network, *pair), seed)

    def test_records_rebuild_the_network(self, pair, network):
        conformance.check_a_record_rebuilds_the_network(admitted(network, *pair), seed=4)

    def test_prices_rise_with_levels(self, pair, network):
        for technique in pair:
            conformance.check_prices_rise_with_levels(admitted(network, *pair), technique, seed=1)


def test_stages_order_the_techniques():
    assert sorted(TECHNIQUES.values(), key=lambda kind: kind.stage) == [
        TECHNIQUES[name] for name in ("depth", "channels", "gates")
    ]
    assert TECHNIQUES["depth"].stage == Stage.SELECT


class TestTheSuiteFails:
    """A suite that cannot fail proves nothing: three techniques with a fault each."""

    def faulty(self, monkeypatch, **changes):
        kind = type("Faulty", (Channels,), {"name": "faulty", "key": "faulty_ratio", **changes})
        monkeypatch.setitem(REGISTRY._entries, "faulty", kind)
        return Case("plain", ("faulty",))

    def test_on_a_wrong_price(self, monkeypatch):
        def priced(self, measure, terms):
            return [*Channels.priced(self, measure, terms), Term("", "weight", 1.0)]

        with pytest.raises(AssertionError):
            conformance.check_prices_are_those_counted(self.faulty(monkeypatch, priced=priced), seed=0)

    def test_on_a_neutral_level_that_changes_a_bit(self, monkeypatch):
        def nudge_(model, work):
            next(model.parameters()).flatten()[0].mul_(1 + 2**-20)
            return model

        steps = property(lambda self: {**Channels.steps.fget(self), Stage.SPARSIFY: nudge_})
        with pytest.raises(AssertionError):
            conformance.check_neutral_is_the_identity(self.faulty(monkeypatch, steps=steps))

    def test_on_a_record_that_rebuilds_something_else(self, monkeypatch):
        def rebuild_(cls, rebuilding, record):
            Channels.rebuild_(rebuilding, {**record, "cuts": record["cuts"][:-1]})

        faulty = self.faulty(monkeypatch, rebuild_=classmethod(rebuild_))
        with pytest.raises((AssertionError, RuntimeError)):
            conformance.check_a_record_rebuilds_the_network(faulty, seed=1)

    def test_on_levels_whose_prices_fall(self, monkeypatch):
        def quantities(self, levels, known):
            found = dict(Channels.quantities(self, levels, known))
            found["kept"] = np.where(found["kept"] > 2, found["kept"] - 2, found["kept"])
            return found

        with pytest.raises(AssertionError):
            conformance.check_prices_rise_with_levels(
                self.faulty(monkeypatch, quantities=quantities), "faulty", seed=0
            )
