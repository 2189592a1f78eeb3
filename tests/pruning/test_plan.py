import json
import math
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunegym.pruning.errors import PlanError
from prunegym.pruning.plan import CompressionPlan, kept_units
from tests.pruning.plans import ratios


@pytest.mark.parametrize(
    ("units", "ratio", "kept"),
    [(16, 0.0, 16), (16, 0.5, 8), (10, 0.25, 8), (10, 0.26, 7), (3, 0.5, 2), (8, 0.99, 1), (1, 0.9, 1)],
)
def test_kept_units_are_rounded_half_up_and_never_none(units, ratio, kept):
    assert kept_units(units, ratio) == kept


@pytest.mark.parametrize(
    ("units", "ratio", "kept"),
    [(64, 0.3, 48), (64, 0.99, 8), (12, 0.1, 8), (5, 0.5, 5), (20, 0.4, 16), (20, 0.39, 16)],
)
def test_kept_units_are_a_multiple_of_eight_where_asked_and_possible(units, ratio, kept):
    assert kept_units(units, ratio, round_to=8) == kept


@pytest.mark.parametrize("units", [10, 17, 33])
def test_ratio_zero_keeps_all_units_whatever_they_are_rounded_to(units):
    assert kept_units(units, 0.0, round_to=8) == units


@pytest.mark.parametrize("amount", [math.nan, math.inf, "0.5", None, True])
def test_an_amount_that_is_no_finite_number_is_refused_in_one_line(amount):
    with pytest.raises(PlanError, match="'conv1': static_ratio must be a finite number") as caught:
        CompressionPlan({"conv1": {"static_ratio": amount}})
    assert "\n" not in str(caught.value)


def test_extending_a_plan_leaves_the_old_one_alone():
    first = CompressionPlan({"a": ratios(0.1)})
    second = first.with_decision("b", ratios(0.2, 0.3)).with_decision("a", ratios(0.4))
    assert first == CompressionPlan({"a": ratios(0.1)})
    assert second == CompressionPlan({"a": ratios(0.4), "b": ratios(0.2, 0.3)})


def test_what_a_plan_does_not_name_is_left_alone():
    assert CompressionPlan()["anything"] == {}


def test_to_json_and_back_is_equal(tmp_path):
    plan = CompressionPlan({"layer1.0.conv1": ratios(1 / 3, 0.1), "conv1#1": ratios(0, 0.5)})
    assert CompressionPlan(json.loads(json.dumps(plan.to_dict()))) == plan
    plan.save(tmp_path / "deep" / "plan.json")
    assert CompressionPlan.load(tmp_path / "deep" / "plan.json") == plan


def test_a_saved_plan_has_the_published_form(tmp_path):
    CompressionPlan({"a": {"static_ratio": 0.5, "weight_bits": 4}}).save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == {
        "version": 2,
        "decisions": {"a": {"static_ratio": 0.5, "weight_bits": 4}},
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot read the plan"),
        ("\xff", "cannot read the plan"),
        ("[]", "not a compression plan of version 2"),
        ('{"version": 1, "decisions": {}}', "not a compression plan of version 2"),
        ('{"version": 2.0, "decisions": {}}', "not a compression plan of version 2"),
        ('{"version": true, "decisions": {}}', "not a compression plan of version 2"),
        ('{"version": 2, "decisions": {}, "note": 1}', "a plan has 'version' and 'decisions', but no 'note'"),
        ('{"version": 2}', "'decisions' must map"),
        ('{"version": 2, "decisions": {"a": 0.5}}', "site 'a': expected"),
        ('{"version": 2, "decisions": {"a": {"static_ratio": NaN}}}', "it holds NaN, which JSON has not"),
        ('{"version": 2, "decisions": {"a": {"static_ratio": "x"}}}', "must be a finite number"),
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(tmp_path, text, complaint):
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(PlanError, match=complaint) as caught:
        CompressionPlan.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_plan_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere\.json"):
        CompressionPlan.load(tmp_path / "nowhere.json")


JUNK = st.recursive(
    st.sampled_from([None, True, -1, 0, 1, 10**12, 10**400, 0.5, "", "static_ratio"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "static_ratio"]), inner)
    ),
    max_leaves=4,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=JUNK, decisions=JUNK, ratio=JUNK)
def test_a_plan_of_anything_is_refused_by_name_or_loads(tmp_path, record, decisions, ratio):
    path = tmp_path / "plan.json"
    for data in (
        record,
        {"version": 2, "decisions": decisions},
        {"version": 2, "decisions": {"a": {"static_ratio": ratio}}},
    ):
        path.write_text(json.dumps(data))
        with suppress(PlanError):
            plan = CompressionPlan.load(path)
            assert all(math.isfinite(one) for name in plan.decisions for one in plan[name].values())
