from prunegym.agents.rollout import EpisodeResult
from prunegym.agents.search import choose_on_validation


def candidate(static_ratio, total=0.0):
    plan = {"layer0.conv": {"static_ratio": static_ratio, "runtime_ratio": 0.0}}
    return EpisodeResult(plan=plan, reward={"total": total}, accuracy=None, shares={"macs": 0.5})


def test_validation_chooses_and_not_the_reward(env):
    near, far = candidate(0.45, total=0.0), candidate(0.9, total=1.0)
    assert choose_on_validation(env, [far, near]) is near


def test_of_equal_scores_the_earlier_candidate_wins(env):
    above, below = candidate(0.75), candidate(0.25)
    assert choose_on_validation(env, [above, below]) is above


def test_each_distinct_plan_is_validated_once(env):
    choose_on_validation(env, [candidate(0.1), candidate(0.1), candidate(0.2)])
    assert len(env.validated) == 2
