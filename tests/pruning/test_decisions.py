import json
from dataclasses import replace

import numpy as np
import pytest

from prunegym.pruning.errors import PlanError, UnknownNameError
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from tests.pruning.oracles import example
from tests.pruning.plans import levels_of, ratios, space_of


def space(name, **method):
    model, graph, _ = example(name)
    return space_of(model, graph, Method(**method))


def plan_of(**decisions):
    return CompressionPlan({site.replace("_", "."): decision for site, decision in decisions.items()})


class TestLevels:
    def test_are_of_all_units_then_of_the_survivors(self):
        levels = space("plain").levels(CompressionPlan({"0.0": ratios(0.5, 0.4), "1.0": ratios(0.0, 0.5)}))
        assert levels["channels"].tolist() == [3, 8]
        assert levels["gates"].tolist() == [2, 4]  # 3 * 0.6 = 1.8

    def test_are_rounded_to_a_multiple(self):
        plan = CompressionPlan({"1.0": ratios(0.4)})
        assert space("plain", round_to=4).levels(plan)["channels"][1] == 4

    def test_refuse_a_site_that_is_not_there(self):
        with pytest.raises(UnknownNameError, match=r"no site named '1\.1'\. Did you mean '1\.0'\?"):
            space("plain").levels(CompressionPlan({"1.1": ratios(0.5)}))

    def test_refuse_a_frozen_group_with_the_reason(self):
        with pytest.raises(PlanError, match=r"group 'conv\.0' is frozen \(operator mixes channels\)"):
            space("softmax").levels(CompressionPlan({"conv.0": ratios(0.5)}))
        space("softmax").levels(CompressionPlan({"conv.0": ratios(0.0)}))

    def test_refuse_a_gate_where_none_can_be(self):
        with pytest.raises(PlanError, match=r"'stem\.0' takes no runtime_ratio \(several layers write"):
            space("residual").levels(CompressionPlan({"stem.0": ratios(0.5, 0.1)}))
        space("residual").levels(CompressionPlan({"stem.0": ratios(0.5, 0.0)}))

    def test_refuse_an_amount_of_no_technique_with_the_nearest(self):
        plan = CompressionPlan({"1.0": {"static_ration": 0.5}})
        message = (
            r"site '1\.0': no technique decides 'static_ration'\. Did you mean 'static_ratio'\? "
            r"On: runtime_ratio, static_ratio"
        )
        with pytest.raises(PlanError, match=message):
            space("plain").levels(plan)

    def test_refuse_an_amount_of_a_technique_that_is_not_on(self):
        message = (
            "runtime_ratio belongs to the technique gates, which is not on; add --techniques channels gates"
        )
        with pytest.raises(PlanError, match=message):
            space("plain", techniques=("channels",)).levels(CompressionPlan({"1.0": ratios(0.5, 0.5)}))

    @pytest.mark.parametrize("amount", [1.0, -0.01, 2.5])
    @pytest.mark.parametrize("key", ["static_ratio", "runtime_ratio"])
    def test_refuse_a_ratio_outside_its_range_in_one_line(self, key, amount):
        with pytest.raises(PlanError, match=rf"'1\.0': {key} must lie in") as caught:
            space("plain").levels(CompressionPlan({"1.0": {key: amount}}))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "grouped", "padded"])
@pytest.mark.parametrize("seed", range(5))
def test_the_plan_of_levels_comes_to_the_same_levels(name, seed):
    _, graph, _ = example(name)
    rng = np.random.default_rng(seed)
    kept = [int(rng.integers(1, group.units + 1)) for group in graph.prunable]
    executed = [
        count if group.ungated else int(rng.integers(1, count + 1))
        for group, count in zip(graph.prunable, kept, strict=True)
    ]
    plan = space(name).plan(levels_of(kept, executed))
    assert list(plan.decisions) == [group.name for group in graph.prunable]
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()
    found = space(name).levels(plan)
    assert (found["channels"].tolist(), found["gates"].tolist()) == (kept, executed)


def test_a_technique_has_an_amount_only_where_it_can_decide():
    plan = space("residual").plan(space("residual").neutral)
    assert {site: set(decision) for site, decision in plan.decisions.items()} == {
        "stem.0": {"static_ratio"},
        "a.0": {"static_ratio", "runtime_ratio"},
    }


def test_nothing_to_decide_is_refused_with_the_reasons():
    model, graph, _ = example("mlp")
    frozen = replace(graph, groups=tuple(replace(group, frozen="all is frozen") for group in graph.groups))
    with pytest.raises(PlanError, match=r"nothing to decide: .*groups are frozen: all is frozen"):
        space_of(model, frozen)
    with pytest.raises(PlanError, match="no technique is on; name some of: gates, channels, depth"):
        space("mlp", techniques=())


def test_a_technique_that_can_decide_nowhere_is_refused_with_the_first_reason():
    message = r"depth can decide nowhere here: at 0\.0, no residual block that can go begins there"
    with pytest.raises(PlanError, match=message):
        space("plain", techniques=("channels", "depth"))
    assert space("layer-scale").sites  # gates, on by default, need not find a place


def test_an_unknown_technique_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no technique named 'channel'. Did you mean 'channels'"):
        space("mlp", techniques=("channel",))
