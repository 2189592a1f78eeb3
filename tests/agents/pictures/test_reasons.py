import pytest

from prunegym.agents.pictures import reasons

NAMES = ["a", "b", "c", "d", "e", "f"]
LOSSES = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
MACS = [0.30, 0.25, 0.20, 0.15, 0.07, 0.03]


def groups(losses=LOSSES, macs=MACS):
    return [
        {"name": name, "units": 16, "macs_share": share, "params_share": 0.1, "errors": [loss / 2, loss, 0.9]}
        for name, loss, share in zip(NAMES, losses, macs, strict=True)
    ]


def plan(**static):
    return {name: {"static_ratio": static.get(name, 0.5), "runtime_ratio": 0.0} for name in NAMES}


def line(lines, name):
    return next(line for line in lines if line.startswith(f"{name} "))


def test_a_sensitive_group_was_spared_because_of_its_curve():
    found = line(reasons(groups(), plan(), plan(a=0.2)), "a")
    assert "spared: 20% of its units, uniform 50%" in found
    assert "sensitive" in found
    assert "lose 30.0 / 60.0 / 90.0% of their output variance (highest of 6)" in found
    assert "30.0% of the MACs (highest)" in found
    assert "does not explain" not in found


def test_a_harmless_group_gave_more_because_of_its_curve():
    found = line(reasons(groups(), plan(), plan(f=0.8)), "f")
    assert "gave more: 80% of its units, uniform 50%" in found
    assert "takes pruning well" in found
    assert "(6th highest of 6)" in found
    assert "does not explain" not in found


def test_a_cheap_and_harmless_group_that_was_spared_is_not_explained_by_its_curve():
    found = line(reasons(groups(), plan(), plan(f=0.1)), "f")
    assert "Its error curve does not explain it, but sparing it costs little" in found


def test_a_harmless_group_of_middling_cost_that_was_spared_is_not_explained_at_all():
    found = line(reasons(groups(), plan(), plan(d=0.1)), "d")
    assert "error curve does not explain it, nor does its share of the MACs" in found


def test_a_sensitive_group_that_gave_more_is_explained_by_its_cost_or_not_at_all():
    lines = reasons(groups(), plan(), plan(a=0.8, c=0.8))
    assert "does not explain it, but pruning it saves much" in line(lines, "a")
    assert "does not explain it, nor" in line(lines, "c")


def test_the_middle_group_is_neither_sensitive_nor_harmless():
    odd = [entry for entry in groups() if entry["name"] != "f"]
    for static in (0.1, 0.9):
        found = line(reasons(odd, plan(), plan(c=static)), "c")
        assert "(3rd highest of 5)" in found
        assert "does not explain it" in found


def test_what_is_skipped_at_runtime_counts_as_given():
    learned = {**plan(), "f": {"static_ratio": 0.5, "runtime_ratio": 0.5}}
    assert "gave more: 75% of its units" in line(reasons(groups(), plan(), learned), "f")


def test_the_groups_farthest_from_uniform_come_first_and_the_text_stays_short():
    learned = plan(a=0.1, b=0.15, c=0.2, d=0.8, e=0.85, f=0.9)
    lines = reasons(groups(), plan(), learned)
    assert [line[0] for line in lines[1:7]] == ["a", "b", "c", "f", "e", "d"]
    assert "3 give less" in lines[0]
    assert "3 give more" in lines[0]
    assert len(lines) == 8
    many = [{**entry, "name": f"{entry['name']}{n}"} for n in range(10) for entry in groups()]
    plans = [{entry["name"]: {"static_ratio": r, "runtime_ratio": 0.0} for entry in many} for r in (0.5, 0.2)]
    assert len(reasons(many, *plans)) <= 8


@pytest.mark.parametrize(
    ("statics", "correlation", "words"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "-1.00", "sensitive groups were spared"),
        ((0.6, 0.5, 0.4, 0.3, 0.2, 0.1), "+1.00", "gave more, which their error curves do not explain"),
        ((0.6, 0.1, 0.5, 0.2, 0.4, 0.6), "-0.12", "explain little"),
    ],
)
def test_the_whole_plan_is_held_against_the_curves(statics, correlation, words):
    learned = plan(**dict(zip(NAMES, statics, strict=True)))
    last = reasons(groups(), plan(), learned)[-1]
    assert correlation in last
    assert words in last


def test_few_groups_say_nothing_of_the_whole_plan():
    assert not any("correlation" in line for line in reasons(groups()[:3], plan(), plan(a=0.1, b=0.8)))


def test_a_plan_like_uniform_needs_no_reasons():
    assert len(reasons(groups(), plan(), plan(a=0.52))) == 1


def test_large_places_have_their_endings():
    many = [{**groups()[0], "name": str(n), "errors": [0, 1 - n / 100, 1]} for n in range(30)]
    spared = {str(n): {"static_ratio": 0.1, "runtime_ratio": 0.0} for n in (10, 20, 21)}
    even = {str(n): {"static_ratio": 0.5, "runtime_ratio": 0.0} for n in range(30)}
    text = " ".join(reasons(many, even, {**even, **spared}))
    for place in ("11th", "21st", "22nd"):
        assert f"({place} highest of 30)" in text
