"""The examples of docs/extending.md: each is run, and a technique of a stranger's goes the whole way."""

import itertools
import json
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional

import prunegym
from prunegym.agents.search import SEARCHES
from prunegym.envs import TASKS
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.criteria import CRITERIA
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.storage.compressed import load_compressed
from prunegym.pruning.techniques import TECHNIQUES
from tests.envs.conftest import make_small_env
from tests.pruning.oracles import example
from tests.pruning.techniques import conformance
from tests.pruning.techniques.conformance import Case

pytestmark = pytest.mark.runs
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
REGISTRIES = (CRITERIA, COMPENSATIONS, MEASURES, TECHNIQUES, TASKS, SEARCHES)


def block(holding):
    """The page's only Python block in which these words stand."""
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (code,) = [one for one in found if holding in one]
    return code


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What an example registers is forgotten after its test."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def run(holding):
    names: dict[str, object] = {"__name__": "example"}
    exec(block(holding), names)
    return names


def read(path):
    return json.loads(path.read_text())


def test_a_criterion(run_cli, material, tmp_path):
    run("@CRITERIA.register")
    model, graph, images = example("plain")
    calibration = Case("plain", ("channels",)).calibration
    scores = CRITERIA["input-mean"](model, graph.group("0.0"), calibration)
    with torch.no_grad():
        seen = functional.unfold(model[0](images), 3, padding=1, stride=2)  # what the second convolution sees
    expected = seen.unflatten(1, (6, 9)).mean((0, 3)).abs().sum(1)
    torch.testing.assert_close(scores, expected.double(), rtol=1e-4, atol=1e-6)
    flags = ["--criterion", "input-mean", "--static-ratio", "0.5", "--out", tmp_path / "out"]
    assert run_cli("prune", *material.flags, *flags).code == 0


def test_a_compensation(run_cli, material, tmp_path):
    run("COMPENSATIONS.register")
    env = make_small_env("plain", method=prunegym.Method(compensation="rescale"))
    dense, small = env.problem.network.model, env.problem.apply({"0.0": {"static_ratio": 0.5}})
    assert small[1][0].weight.shape[1] == 3
    after, before = (float(model[1][0].weight.detach().norm()) for model in (small, dense))
    assert after == pytest.approx(before, rel=1e-5)
    flags = ["--compensation", "rescale", "--static-ratio", "0.5", "--out", tmp_path / "out"]
    assert run_cli("prune", *material.flags, *flags).code == 0


def test_a_measure_can_be_a_budget_beside_others(run_cli, material, tmp_path):
    run("MEASURES.register")
    flags = ["--budget", "energy=0.5", "macs=0.7", "--out", tmp_path / "out"]
    assert run_cli("prune", *material.flags, *flags).code == 0
    rows = read(tmp_path / "out" / "metrics.json")["rows"]
    energy = [4 * rows[name]["macs"] + 640 * rows[name]["params"] for name in ("pruned", "dense")]
    assert 0.3 < energy[0] / energy[1] <= 0.5
    env = make_small_env(budget={"energy": 0.5})
    assert {"budget_energy", "share_energy", "now_energy", "to_come_energy"} <= set(env.observation_names)
    assert "energy" in run_cli("describe", *material.flags).out


class TestATechnique:
    @pytest.fixture(autouse=True)
    def technique(self):
        run("@TECHNIQUES.register")

    @pytest.mark.parametrize(
        ("network", "beside"),
        [
            *itertools.product(["plain", "blocks", "depthwise", "padded"], [(), ("channels",)]),
            *itertools.product(["blocks", "padded"], [("channels", "depth")]),
        ],
    )
    def test_does_what_every_technique_must(self, network, beside):
        case = Case(network, (*beside, "kernel_size"))
        conformance.check_neutral_is_the_identity(case)
        conformance.check_prices_are_those_counted(case, seed=0)
        conformance.check_prices_rise_with_levels(case, "kernel_size", seed=0)
        conformance.check_amounts_convert_both_ways(case, "kernel_size")
        conformance.check_a_record_rebuilds_the_network(case, seed=1)
        conformance.check_a_plan_survives_json(case, seed=2)

    def test_is_in_action_observation_and_plan(self):
        env = make_small_env("residual", techniques=("channels", "kernel_size"))
        assert env.techniques == ("channels", "kernel_size")
        assert env.action_names == ("static_ratio", "kernel_size")
        assert env.action_space.shape == (2,)
        assert {"available_kernel_size", "last_kernel_size", "mean_kernel_size"} <= set(env.observation_names)
        # a layer-wise technique has a site for the trunk's second writer as well
        assert env.site_names == ("stem.0", "a.0", "b.0")
        assert env.admitted.tolist() == [[True, True], [True, True], [False, True]]
        env.reset()
        for _ in env.site_names:
            *_, info = env.step(np.array([0.0, 1.0], dtype=np.float32))
        result = info["episode_result"]
        assert any(one["kernel_size"] == 1.0 for one in result["plan"].values())
        assert result["shares"]["macs"] <= 0.5

    def test_goes_the_whole_way(self, run_cli, material, tmp_path):
        out, on = tmp_path / "out", ["--techniques", "channels", "kernel_size"]
        learning = ["--episodes", "6", "--algo", "cma-es", "--baselines", "random"]
        outcome = run_cli("train", *material.flags, *on, "--budget", "macs=0.4", *learning, "--out", out)
        assert outcome.code == 0, outcome.err
        plan = read(out / "plan.json")["decisions"]
        assert {"static_ratio", "kernel_size"} == {key for decision in plan.values() for key in decision}
        lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
        assert all("kernel_size" in line["plan"]["stem.0"] for line in lines)
        rows = read(out / "metrics.json")["rows"]
        assert rows["cma-es"]["macs"] <= 0.4 * rows["dense"]["macs"]
        assert run_cli("report", out).code == 0
        assert "<th>kernel size</th>" in (out / "report.html").read_text()
        compressed = ["--compressed", out, "--model", material.model, "--data", f"npz:{material.data}"]
        assert run_cli("evaluate", *compressed).code == 0
        files = ["--format", "pt2", "--out", tmp_path / "model.pt2"]
        exported = run_cli("export", "--compressed", out, "--model", material.model, *files)
        assert exported.code == 0, exported.err

    def test_a_plan_of_its_own_is_carried_out_saved_and_loaded(self, run_cli, material, tmp_path):
        flags = ["--techniques", "channels", "kernel_size", "--kernel-size", "1", "--out", tmp_path / "out"]
        outcome = run_cli("prune", *material.flags, *flags)
        assert outcome.code == 0, outcome.err
        loaded = load_compressed(tmp_path / "out" / "compressed", network=material.model)
        assert loaded.model.a[0].weight.shape[2:] == (1, 1)
        assert loaded.records["kernel_size"] == {"layers": ["stem.0", "a.0", "b.0"]}
        wrong = run_cli("prune", *material.flags, "--kernel-size", "1", "--out", tmp_path / "other")
        assert wrong.code == 2
        assert "which is not on; add --techniques channels gates kernel_size" in wrong.err


def test_a_task(monkeypatch):
    run("@TASKS.register")
    untrained = resolve_network("digits_resnet").build()
    monkeypatch.setattr("prunegym.envs.tasks.dense_digits", lambda **_: untrained)
    env = gym.make("prunegym/LayerPruning-v0", task="digits-at-a-third")
    assert str(env.unwrapped.problem.budget) == "macs=0.33"


def test_a_search(run_cli, material, tmp_path):
    run("@SEARCHES.register")
    learning = ["--algo", "halving", "--episodes", "12", "--baselines"]
    outcome = run_cli("train", *material.flags, "--budget", "macs=0.5", *learning, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert list(read(tmp_path / "out" / "metrics.json")["rows"]) == ["dense", "uniform", "halving"]
    lines = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["by"] for line in lines] == ["halving"] * 12
