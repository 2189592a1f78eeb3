import numpy as np
import pytest

from prunegym.agents.pictures import Run, plans_heatmap, run_pictures

ROWS = {
    "dense": {"accuracy": 0.9, "macs": 1000.0},
    "uniform": {"accuracy": 0.6, "macs": 500.0},
    "cma-es": {"accuracy": 0.7, "macs": 490.0},
}


def ratios(static):
    return {"a": {"static_ratio": static, "runtime_ratio": 0.0}}


@pytest.fixture
def episodes(episode):
    return [
        episode(0.9, by="random", plan={"a": (0.2, 0.0)}),
        episode(0.6, by="cma-es", plan={"a": (0.3, 0.0)}),
        episode(0.7, by="cma-es", plan={"a": (0.4, 0.0)}),
        episode(0.4, by="cma-es", plan={"a": (0.6, 0.0)}),
    ]


def test_while_it_goes_on_the_learners_best_plan_counts(episodes, episode):
    run = Run({"algo": "cma-es"}, [*episodes, episode(0.99, by="cma-es", estimated=True)])
    assert run.chosen == ("best so far", ratios(0.4))
    assert run.uniform is None
    assert set(run_pictures(run)) == {"pareto", "reward", "heatmap"}


def test_when_it_is_finished_the_last_row_is_the_chosen_one(episodes):
    plans = {"uniform": ratios(0.55), "cma-es": ratios(0.65)}
    run = Run({"algo": "cma-es"}, episodes, finished=True, rows=ROWS, plans=plans)
    assert run.chosen == ("cma-es", ratios(0.65))
    assert run.uniform == ratios(0.55)


def test_a_finished_run_without_plans_goes_by_its_plan_file_or_has_none(episodes):
    assert Run({}, episodes, finished=True, rows=ROWS, plan=ratios(0.1)).chosen == ("cma-es", ratios(0.1))
    assert Run({}, episodes, finished=True, rows=ROWS).chosen is None


@pytest.mark.parametrize("several", ["networks", "budgets", "rows"])
def test_several_networks_or_budgets_have_no_common_plan(episodes, episode, several):
    run = Run(
        {"algo": "cma-es", "budget": ["macs=0.3..0.8" if several == "budgets" else "macs=0.5"]},
        [*episodes, *([episode(plan={"b": (0.1, 0.0)})] if several == "networks" else [])],
        rows={"net macs=0.5 dense": ROWS["dense"]} if several == "rows" else {},
    )
    assert run.chosen is None
    assert set(run_pictures(run)) == {"pareto", "reward"}


def test_marks_are_test_accuracies_at_shares_of_the_dense_macs(episodes):
    assert Run({}, episodes, rows=ROWS).marks() == {"uniform": (0.5, 0.6), "cma-es": (0.49, 0.7)}


def test_without_labels_marks_are_the_rewards_of_the_same_plans(episode):
    found = [episode(0.75, 0.4, labelled=False), episode(0.5, 0.3, labelled=False, plan={"a": (0.1, 0.0)})]
    run = Run({}, found, rows=ROWS, plans={"cma-es": ratios(0.1), "uniform": ratios(0.9)})
    assert run.marks() == {"cma-es": (0.3, pytest.approx(0.25))}


def test_the_heat_map_is_of_the_learners_plans_alone(episodes):
    picture = run_pictures(Run({"algo": "cma-es"}, episodes))["heatmap"]
    expected = plans_heatmap(["a"], [ratios(0.3), ratios(0.4), ratios(0.6)])
    assert np.array_equal(picture, expected)


def test_who_made_most_plans_is_the_learner_where_the_flags_do_not_say(episodes):
    assert Run({}, episodes).learner == "cma-es"
    assert Run({"algo": "random"}, episodes).learner == "random"


def test_a_run_that_holds_nothing_yet_has_no_pictures():
    assert run_pictures(Run({}, [])) == {}
