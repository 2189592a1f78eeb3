"""What every compression technique must do, as checks that a technique of anyone's can be put to."""

from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import torch
from torch import nn

from prunegym.pruning.apply import Compressed, apply_plan, rebuild_, score_units
from prunegym.pruning.calibration.statistics import Calibration, calibrate, real_images
from prunegym.pruning.cost import CostModel
from prunegym.pruning.criteria import select
from prunegym.pruning.decisions import DecisionSpace
from prunegym.pruning.errors import PlanError
from prunegym.pruning.graph.blocks import without_blocks
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.storage.compressed import records_of
from prunegym.pruning.technique import Levels, Subject, Technique
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import counted_macs, counted_params, example, silenced_output


class Case:
    """A technique, alone or beside others, on an example network."""

    def __init__(self, name: str, techniques: tuple[str, ...], compensation: str = "least-squares") -> None:
        self.name = name
        self.model, self.graph, self.images = example(name)
        method = Method(compensation=compensation, techniques=techniques)
        self.space = DecisionSpace(Subject(self.model, self.graph, method))
        self.cost = CostModel(self.space)
        self._statistics = {one for technique in self.space.techniques for one in technique.statistics}

    @property
    def calibration(self) -> Calibration:
        asked = {"moments", *self._statistics}
        return calibrate(self.graph, real_images(self.model, [self.images]), statistics=asked)

    def apply(self, plan: CompressionPlan) -> Compressed:
        return apply_plan(self.space, plan, self.calibration)

    def technique(self, name: str) -> Technique:
        return next(one for one in self.space.techniques if one.name == name)

    def random_plan(self, seed: int) -> CompressionPlan:
        """A level drawn at every site, neutral ones among them."""
        rng = np.random.default_rng(seed)
        return self.space.plan(self.drawn(rng))

    def drawn(self, rng: np.random.Generator) -> Levels:
        levels = {name: of_sites.copy() for name, of_sites in self.space.neutral.items()}
        for site in range(len(self.space.sites)):
            here: dict[str, int] = {}
            for technique in self.space.staged:
                here[technique.name] = int(rng.choice(list(self.space.choices(technique, site, here))))
                levels[technique.name][site] = here[technique.name]
        return levels


@cache
def case(name: str, *techniques: str, compensation: str = "least-squares") -> Case | None:
    """The case, None where nothing can be decided."""
    try:
        return Case(name, techniques, compensation)
    except PlanError:
        return None


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that would be saved."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def check_neutral_is_the_identity(case: Case) -> None:
    """The neutral level leaves every bit of the output, and every tensor, as it is."""
    for plan in (CompressionPlan(), case.space.plan(case.space.neutral)):
        found = case.apply(plan)
        assert torch.equal(found.model(case.images), case.model(case.images))
        assert list(found.model.state_dict()) == list(case.model.state_dict())
        dense = case.model.state_dict()
        assert all(torch.equal(tensor, dense[key]) for key, tensor in found.model.state_dict().items())


def check_prices_are_those_counted(case: Case, seed: int) -> None:
    """Predicted parameters and bytes equal those counted on the network that comes out."""
    found = case.apply(case.random_plan(seed))
    assert case.cost.price("params", found.levels) == counted_params(found.model)
    assert case.cost.price("bytes", found.levels) == stored_bytes(found.model)
    if not found.gates:
        assert case.cost.price("macs", found.levels) == counted_macs(found.model, case.images[0])


def check_prices_rise_with_levels(case: Case, name: str, seed: int) -> None:
    """Below the neutral level, a higher level of a technique never costs less, by any measure."""
    rng = np.random.default_rng(seed)
    technique = case.technique(name)
    for site in np.flatnonzero(case.space.available[name]).tolist():
        levels = case.drawn(rng)
        here = {one: int(of_sites[site]) for one, of_sites in levels.items()}
        choices = list(case.space.choices(technique, site, here))
        assert choices == sorted(set(choices))
        assert choices[-1] == technique.neutral_level(site, here)
        prices = []
        for level in choices[:-1]:
            changed = {**levels, name: levels[name].copy()}
            changed[name][site] = level
            for later in case.space.staged[case.space.staged.index(technique) + 1 :]:
                changed[later.name] = levels[later.name].copy()
                changed[later.name][site] = later.neutral_level(site, {**here, name: level})
            prices.append([case.cost.price(measure, changed) for measure in case.cost.prices])
        assert all(np.all(np.diff(column) >= 0) for column in np.array(prices).T if len(prices) > 1)


def check_amounts_convert_both_ways(case: Case, name: str) -> None:
    """An amount of a level is that level again; of the neutral one it is the neutral amount."""
    technique = case.technique(name)
    for site in np.flatnonzero(case.space.available[name]).tolist():
        here = {one: int(of_sites[site]) for one, of_sites in case.space.neutral.items() if one != name}
        for level in technique.levels(site, here):
            amount = technique.amount(site, level, here)
            technique.check(amount, "a level")
            assert technique.level(site, amount, here) == level
        neutral = technique.amount(site, technique.neutral_level(site, here), here)
        assert neutral == technique.neutral


def check_a_record_rebuilds_the_network(case: Case, seed: int) -> None:
    """The records, as JSON, and the tensors make the same network from a fresh dense one."""
    found = case.apply(case.random_plan(seed))
    records = json.loads(json.dumps(records_of(found)))
    fresh = EXAMPLES[case.name].model(seed=9)
    again = rebuild_(fresh, case.graph.input_shape, records, found.biases).eval()
    again.load_state_dict(found.model.state_dict(), strict=True)
    assert torch.equal(again(case.images), found.model(case.images))


def check_a_plan_survives_json(case: Case, seed: int) -> None:
    """A plan of levels, written and read, comes to the same levels."""
    levels = case.drawn(np.random.default_rng(seed))
    plan = CompressionPlan(json.loads(json.dumps(case.space.plan(levels).to_dict())))
    again = case.space.levels(plan)
    assert {name: of_sites.tolist() for name, of_sites in again.items()} == {
        name: of_sites.tolist() for name, of_sites in levels.items()
    }


def check_the_input_model_is_untouched(case: Case, seed: int) -> None:
    before = copy.deepcopy(case.model.state_dict())
    case.apply(case.random_plan(seed))
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())


@torch.no_grad()
def check_it_agrees_with_the_uncut_network(case: Case, seed: int) -> None:
    """Without compensation: cut means units silenced, a gate means a mask, depth means an identity."""
    found = case.apply(case.random_plan(seed))
    gates = gates_of(found.model)
    for gate in gates.values() if gates is not None else ():
        for fill in gate.fill.values():
            fill.zero_()
    output = found.model(case.images)
    blocks = found.records.get("depth", {"blocks": []})["blocks"]
    reference, graph = copy.deepcopy(case.model), case.graph
    for block in blocks:
        reference.set_submodule(block, nn.Identity())
    if blocks:
        known = {one.name: one for one in case.space.subject.blocks.blocks}
        graph = without_blocks(graph, [known[block] for block in blocks])
    scores = score_units(case.model, case.graph, case.calibration, criterion="l1")
    kept = {group.name: torch.arange(group.units) for group in graph.prunable}
    for site, count in zip(case.space.sites, found.levels.get("channels", ()), strict=False):
        if site.name in kept:
            kept[site.name] = select(scores[site.name], int(count))
    for index, image in enumerate(case.images.split(1)):
        running = dict(kept)
        for one in found.gates:
            mask = gates.gate_for(one.group).mask[index] > 0  # type: ignore[union-attr, index]
            running[one.group] = kept[one.group][mask]
        expected = silenced_output(reference, graph, running, image)
        torch.testing.assert_close(output[index : index + 1], expected, rtol=1e-4, atol=1e-4)
