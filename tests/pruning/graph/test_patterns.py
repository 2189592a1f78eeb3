import pytest

from prunegym.pruning.errors import UnknownNameError
from prunegym.pruning.graph.patterns import restrict
from tests.pruning.oracles import example


def prunable(**patterns):
    _, graph, _ = example("projected")
    return [group.name for group in restrict(graph, **patterns).prunable]


def test_without_patterns_nothing_changes():
    _, graph, _ = example("projected")
    assert restrict(graph) == graph


def test_only_admits_a_group_if_all_its_writers_match():
    # the trunk conv1 is also written by layer1.0.conv2
    assert prunable(only=["conv1"]) == []
    assert prunable(only=["conv1", "layer1.0.conv2"]) == ["conv1"]
    assert prunable(only=["layer1*"]) == ["layer1.0.conv1"]


def test_protect_freezes_a_group_if_any_of_its_writers_matches():
    everything = prunable()
    assert prunable(protect=["layer1.0.conv2"]) == [name for name in everything if name != "conv1"]


def test_protect_wins_over_only():
    assert prunable(only=["layer1*"], protect=["*.conv1"]) == []


def test_the_reason_is_told_and_other_reasons_stay():
    _, graph, _ = example("projected")
    reasons = {group.name: group.frozen for group in restrict(graph, protect=["l*"]).groups}
    assert reasons["layer1.0.conv1"] == "protected by --protect"
    assert reasons["linear"] == graph.group("linear").frozen
    admitted = restrict(graph, only=["layer1*"]).group("layer2.0.conv1")
    assert (admitted.frozen, admitted.ungated) == ("not admitted by --only", "it is frozen")


@pytest.mark.parametrize("role", ["only", "protect"])
@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [("layr1*", "layer1.*"), ("layer2.0.convv2", "layer2.0.conv2"), ("con1", "conv1"), ("Linear", "linear")],
)
def test_a_pattern_that_matches_no_layer_is_refused_with_the_nearest(role, pattern, nearest):
    with pytest.raises(UnknownNameError) as caught:
        prunable(**{role: [pattern]})
    assert f"matches the pattern {pattern!r}. Did you mean {nearest!r}?" in str(caught.value)


def test_where_nothing_is_near_there_is_no_hint():
    with pytest.raises(UnknownNameError) as caught:
        prunable(only=["???"])
    assert "Did you mean" not in str(caught.value)
