"""A fair comparison of an agent or a search with baselines and uniform pruning, on equal terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prunegym.agents.episode_log import EPISODES, EpisodeLog
from prunegym.agents.errors import AgentError
from prunegym.agents.learning.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from prunegym.agents.learning.training import LearningConfig, LearningResult, Recording, learn
from prunegym.agents.rollout import EpisodeResult, deterministic, run_episode
from prunegym.agents.search import SEARCHES, SearchResult, choose_on_validation, search
from prunegym.agents.vector.make import vectorized
from prunegym.envs import ALLOCATIONS, Budget, LayerPruningEnv


@dataclass(frozen=True)
class ComparisonConfig:
    """The methods to compare, and the number of evaluations for each."""

    algorithm: str = DEFAULT_ALGORITHM  # a name in ALGORITHMS or SEARCHES
    episodes: int = 200  # evaluations for the algorithm, and for each baseline that searches
    baselines: Sequence[str] = ("random",)  # names in SEARCHES or ALLOCATIONS
    seed: int = 0
    learning: LearningConfig = LearningConfig()  # noqa: RUF009 (frozen) its initial policy stays a candidate


@dataclass(frozen=True)
class Comparison:
    """The plan of each method, none of which costs more than the uniform plan."""

    name: str  # the algorithm's key in `chosen`: "learned", or the name of a search
    learned: LearningResult | None  # None for a search, which learns no policy
    chosen: Mapping[str, EpisodeResult]  # "uniform", the baselines, and last the algorithm, under `name`
    candidates: Mapping[str, EpisodeResult]  # "final", "best" and, if there is one, "initial"

    @property
    def winner(self) -> str:
        """Name of the algorithm's candidate that was chosen on the validation images."""
        chosen = self.chosen[self.name]
        return next(name for name, candidate in self.candidates.items() if candidate is chosen)


def compare(
    env: LayerPruningEnv,
    config: ComparisonConfig,
    *,
    acting_env: LayerPruningEnv | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_learned: Callable[[], None] | None = None,
) -> Comparison:
    """Find a plan for one network within one budget, by the algorithm and by baselines on equal terms.

    1. The uniform plan within the budget is evaluated. From then on the budget is exactly what that plan
       leaves of each measure, so that no method wins by spending more of the budget.
    2. The algorithm and each baseline that searches may evaluate `episodes` plans on the reward images.
    3. Each method has two candidates: its final answer, and the best plan that it evaluated. An initial
       policy adds a third, at one more evaluation. The validation images choose between them.
    4. Test images are not used at all, so they influence no choice.

    Args:
        env: the environment for baselines, with centred actions; its budget becomes that of the uniform plan.
        config: what is compared.
        acting_env: the environment of the algorithm where its actions have another meaning (see
            `Algorithm.actions`), on the same network and budget; `env` by default.
        out: the folder that keeps `episodes.jsonl`, checkpoints and curves; None for none.
        resume: continue from what `out` keeps.
        progress: show bars on standard error.
        on_learned: called when the algorithm has finished, before the baselines begin.

    Raises:
        AgentError: an algorithm or baseline is unknown, or `learn` refuses something.
    """
    for name in (config.algorithm, *config.baselines):
        if name not in ALGORITHMS and name not in ALLOCATIONS:
            SEARCHES[name]  # unknown names are refused before the work begins
    budget = env.problem.budget
    if not isinstance(budget, Budget):
        raise AgentError(f"methods are compared within one budget, got the range {budget}; choose one")
    acting_env = acting_env or env
    uniform = EpisodeResult.from_dict(env.problem.evaluate(env.problem.allocation("uniform")))
    shares = env.problem.shares(uniform.plan)
    spent = Budget({name: shares[name] for name in budget.shares})
    env.set_budget(spent)
    if acting_env is not env:
        acting_env.set_budget(spent)
    log = EpisodeLog(out / EPISODES) if out else None
    learned: LearningResult | None = None
    outcome: LearningResult | SearchResult
    if config.algorithm in ALGORITHMS:
        outcome = learned = learn(
            acting_env,
            algorithm=config.algorithm,
            episodes=config.episodes,
            seed=config.seed,
            config=config.learning,
            recording=Recording(
                tensorboard=out / "tensorboard" if out else None,
                checkpoint=out / "checkpoint" if out else None,
                resume=resume,
                log=log,
                uniform=uniform,
                progress=progress,
            ),
        )
    else:
        outcome = _search(acting_env, config.algorithm, config, log, progress=progress)
    if on_learned is not None:
        on_learned()
    chosen = {"uniform": uniform}
    for baseline in config.baselines:
        if baseline in ALLOCATIONS:
            chosen[baseline] = EpisodeResult.from_dict(env.problem.evaluate(env.problem.allocation(baseline)))
        elif baseline != config.algorithm:
            result = _search(env, baseline, config, log, progress=progress)
            chosen[baseline] = choose_on_validation(env, [result.final, result.best])
    candidates = {"final": outcome.final, "best": outcome.best}
    if config.learning.initial_policy is not None:
        unchanged = config.learning.initial_policy.build(acting_env)
        candidates["initial"] = run_episode(acting_env, deterministic(unchanged))
    name = config.algorithm if learned is None else "learned"
    chosen[name] = choose_on_validation(env, list(candidates.values()))
    return Comparison(name, learned, chosen, candidates)


def _search(
    env: LayerPruningEnv, name: str, config: ComparisonConfig, log: EpisodeLog | None, *, progress: bool
) -> SearchResult:
    """Search for a plan in as many environments as learning uses, and log its evaluations."""
    if log is not None:
        log.resume(env, name, 0)
    envs = vectorized(env, n_envs=config.learning.n_envs, cluster=config.learning.cluster)
    try:
        return search(
            envs,
            name,
            admitted=env.admitted,
            episodes=config.episodes,
            seed=config.seed,
            progress=progress,
            on_episode=partial(log.append, name) if log is not None else None,
        )
    finally:
        envs.close()
