"""Every way to find a plan and to reuse a policy, on the digits, end to end through the command line."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import save_file

from prunegym.agents import BUILTIN
from prunegym.pruning.networks.registry import resolve_network
from prunegym.scripts.cli import main
from tests.pruning.example_networks import randomised
from tests.scripts.conftest import NETWORK, QUICK
from tests.scripts.test_main_job import read

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("no_pictures")]

RANGE = ["--budget", "macs=0.15..0.4"]
NARROW = NETWORK.replace("12", "6").replace("class Net", "class Narrow")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    weights = tmp_path_factory.mktemp("digits") / "weights.safetensors"
    save_file(randomised(resolve_network("digits_resnet").build()).state_dict(), weights)
    return ["--weights", weights, "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def for_reuse(flags, tmp_path_factory):
    """A run that learned a policy for a range of budgets, in two processes; not to be changed."""
    out = tmp_path_factory.mktemp("reuse") / "run"
    command = ["train", *flags, *RANGE, *QUICK, "--episodes", "9", "--n-envs", "2", "--out", out]
    assert main([str(part) for part in command]) == 0
    return out


def log_of(out):
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def ratios(plan, kind):
    return [one.get(f"{kind}_ratio", 0.0) for one in plan.values()]


def within(out, share):
    rows = read(out / "metrics.json")["rows"]
    return all(row["macs"] <= share * rows["dense"]["macs"] for name, row in rows.items() if name != "dense")


def test_a_search_takes_the_place_of_the_agent(run_cli, flags, tmp_path):
    out, search = tmp_path / "out", ["--algo", "cma-es", "--episodes", "20", "--n-envs", "2"]
    baselines = ["--baselines", "sensitivity", "cma-es"]  # what is compared with itself gets one row
    outcome = run_cli("train", *flags, "--budget", "macs=0.2", *search, *baselines, "--out", out)
    assert outcome.code == 0, outcome.err
    metrics = read(out / "metrics.json")
    assert list(metrics["rows"]) == ["dense", "uniform", "sensitivity", "cma-es"]
    assert metrics["verdict"].startswith("cma-es ")
    assert metrics["cma-es_is"] in ("final policy", "best plan seen")
    assert within(out, 0.2)
    assert not (out / "policy").exists()
    assert [entry["by"] for entry in log_of(out)] == ["cma-es"] * 20
    best = max(log_of(out)[:-1], key=lambda entry: entry["reward"]["total"])
    assert metrics["candidates"]["best"]["reward"] == best["reward"]


def test_flags_reach_agent_and_environment(run_cli, flags, tmp_path):
    out = tmp_path / "out"
    agent = ["--algo", "sac", "--episodes", "14", "--hyper", "warmup_episodes=2"]
    agent += ["--hyper", "policy_kwargs.net_arch=[8, 8]", "--baselines", "sensitivity"]
    reward = ["--first-images", "16", "--dense-reward"]
    limits = ["--max-runtime-ratio", "0", "--max-static-ratio", "0.8"]
    budget = ["--budget", "macs=0.3"]
    outcome = run_cli("train", *flags, *budget, *agent, *reward, *limits, "--out", out)
    assert outcome.code == 0, outcome.err
    log = log_of(out)
    assert [entry["by"] for entry in log] == ["sac"] * 14
    assert {ratio for entry in log for ratio in ratios(entry["plan"], "runtime")} == {0.0}
    assert max(ratio for entry in log for ratio in ratios(entry["plan"], "static")) <= 0.8 + 0.5 / 8
    assert any(entry["reward"]["estimated"] for entry in log)
    assert read(out / "policy" / "policy.json")["shape"]["net_arch"] == [8, 8]
    assert list(read(out / "metrics.json")["rows"]) == ["dense", "uniform", "sensitivity", "learned"]


def test_amc_keeps_below_the_budget_and_takes_no_gates(run_cli, flags, tmp_path):
    out, amc = tmp_path / "out", ["--algo", "amc", "--episodes", "7", "--hyper", "warmup_episodes=2"]
    outcome = run_cli("train", *flags, "--budget", "macs=0.2", *amc, "--baselines", "--out", out)
    assert outcome.code == 0, outcome.err
    assert list(read(out / "metrics.json")["rows"]) == ["dense", "uniform", "learned"]
    assert within(out, 0.2)
    assert {ratio for entry in log_of(out) for ratio in ratios(entry["plan"], "runtime")} == {0.0}
    shares = [entry["shares"]["macs"] for entry in log_of(out)]
    assert min(shares) < 0.18  # an upper wall only: what the others never leave unused
    assert read(out / "policy" / "policy.json")["action"]["mode"] == "raw"
    applied = ["--budget", "macs=0.2", "--policy", out / "policy", "--out", tmp_path / "applied"]
    assert run_cli("prune", *flags, *applied).code == 0
    assert set(ratios(read(tmp_path / "applied" / "plan.json")["decisions"], "runtime")) == {0.0}
    further = ["--algo", "amc", "--episodes", "5", "--init-policy", out / "policy", "--baselines"]
    assert run_cli("train", *flags, "--budget", "macs=0.2", *further, "--out", tmp_path / "on").code == 0


def test_amc_for_reuse_takes_actions_for_ratios_too(run_cli, flags, tmp_path):
    out, amc = tmp_path / "out", ["--algo", "amc", "--episodes", "5", "--hyper", "warmup_episodes=2"]
    assert run_cli("train", *flags, "--budget", "macs=0.2..0.4", *amc, "--out", out).code == 0
    assert read(out / "policy" / "policy.json")["action"]["mode"] == "raw"
    assert {ratio for entry in log_of(out) for ratio in ratios(entry["plan"], "runtime")} == {0.0}


def test_a_range_of_budgets_makes_a_policy_and_rows_for_its_ends_and_middle(for_reuse):
    metrics = read(for_reuse / "metrics.json")
    budgets = ["0.15", "0.275", "0.4"]
    rows = [f"digits_resnet macs={share} {how}" for share in budgets for how in ("uniform", "learned")]
    assert list(metrics["rows"]) == ["digits_resnet dense", *rows]
    dense = metrics["rows"]["digits_resnet dense"]["macs"]
    for name in rows:
        assert metrics["rows"][name]["macs"] <= float(name.split("=")[1].split()[0]) * dense
    assert metrics["verdict"].startswith("learned against uniform, in points: ")
    assert not (for_reuse / "plan.json").exists()
    learned_on = read(for_reuse / "policy" / "policy.json")["learned_on"]
    assert (learned_on["networks"], learned_on["budget"]) == (["digits_resnet"], ["macs=0.15..0.4"])
    assert len(log_of(for_reuse)) == 9
    assert len({round(entry["shares"]["macs"], 2) for entry in log_of(for_reuse)}) > 2  # budgets were drawn


def test_a_policy_for_reuse_prunes_within_a_budget_of_its_range(run_cli, flags, for_reuse, tmp_path):
    policy = ["--policy", for_reuse / "policy", "--budget", "macs=0.25"]
    for name, samples in (("first", []), ("best", ["--samples", "3"])):
        outcome = run_cli("prune", *flags, *policy, *samples, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        assert within(tmp_path / name, 0.25)
    again = run_cli("prune", *flags, *policy, "--samples", "3", "--out", tmp_path / "again")
    assert again.code == 0
    assert read(tmp_path / "again" / "plan.json") == read(tmp_path / "best" / "plan.json")  # one seed


def test_a_policy_goes_on_within_another_budget(run_cli, flags, for_reuse, tmp_path):
    """It begins as what it goes on from: with one evaluation, which explores nothing, it decides alike."""
    init = ["--init-policy", for_reuse / "policy", "--episodes", "1", "--budget", "macs=0.2", "--baselines"]
    assert run_cli("train", *flags, *init, *QUICK, "--out", tmp_path / "on").code == 0
    metrics = read(tmp_path / "on" / "metrics.json")
    even = metrics["rows"]["uniform"]["macs"] / metrics["rows"]["dense"]["macs"]
    applied = ["--policy", for_reuse / "policy", "--budget", f"macs={even!r}"]
    assert run_cli("prune", *flags, *applied, "--out", tmp_path / "applied").code == 0
    decided = read(tmp_path / "applied" / "plan.json")["decisions"]
    assert metrics["candidates"]["final"]["plan"] == metrics["candidates"]["initial"]["plan"] == decided


def test_the_policy_that_learning_began_from_stays_a_candidate(
    run_cli, flags, for_reuse, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "prunegym.agents.comparison.choose_on_validation", lambda env, candidates: candidates[-1]
    )
    init = ["--init-policy", for_reuse / "policy", "--episodes", "9", "--budget", "macs=0.2", "--baselines"]
    assert run_cli("train", *flags, *init, *QUICK, "--out", tmp_path / "on").code == 0
    metrics = read(tmp_path / "on" / "metrics.json")
    assert metrics["learned_is"] == "initial policy, unchanged"
    plan = metrics["candidates"]["initial"]["plan"]
    assert read(tmp_path / "on" / "plan.json")["decisions"] == plan != metrics["candidates"]["final"]["plan"]


def test_a_policy_is_learned_on_two_networks_and_goes_on(run_cli, material, tmp_path):
    (tmp_path / "narrow.py").write_text(NARROW)
    other = f"{tmp_path / 'narrow.py'}:Narrow"
    network = resolve_network(other, input_size=(1, 8, 8), mean=(0.5,), std=(0.25,))
    save_file(randomised(network.build()).state_dict(), tmp_path / "narrow.safetensors")
    both = ["--also", f"{other}={tmp_path / 'narrow.safetensors'}", "--episodes", "19"]
    command = ["train", *material.flags, *both, *QUICK, "--out", tmp_path / "out"]
    assert run_cli(*command).code == 0
    rows = read(tmp_path / "out" / "metrics.json")["rows"]
    assert [row.removeprefix(material.model).removeprefix(other) for row in rows] == 2 * [
        " dense",
        " macs=0.5 uniform",
        " macs=0.5 learned",
    ]
    plans = [set(entry["plan"]) for entry in log_of(tmp_path / "out")]
    assert plans[0::2] == 10 * [{f"{material.model}/{group}" for group in ("stem.0", "a.0", "c.0")}]
    assert plans[1::2] == 9 * [{f"{other}/{group}" for group in ("stem.0", "a.0", "c.0")}]
    shutil.copytree(tmp_path / "out", tmp_path / "on")
    longer = [*command[:-1], tmp_path / "on", "--resume", "--episodes", "27"]
    assert run_cli(*longer).code == 0
    assert log_of(tmp_path / "on")[:16] == log_of(tmp_path / "out")[:16]
    assert len(log_of(tmp_path / "on")) == 27


def test_sensitivity_allocates_otherwise_than_evenly(run_cli, flags, tmp_path):
    sensitivity = ["--allocation", "sensitivity", "--budget", "macs=0.2"]
    assert run_cli("prune", *flags, *sensitivity, "--out", tmp_path / "out").code == 0
    assert within(tmp_path / "out", 0.2)
    found = ratios(read(tmp_path / "out" / "plan.json")["decisions"], "static")
    assert max(found) - min(found) > 0.2


def test_more_first_images_than_there_are_judge_as_all_of_them(run_cli, material, tmp_path):
    flags = ["train", *material.flags, *QUICK, "--episodes", "14", "--baselines", "--first-images"]
    for name, first in (("all", 100_000), ("few", 10)):
        assert run_cli(*flags, first, "--out", tmp_path / name).code == 0
    parts = {name: [line["reward"] for line in log_of(tmp_path / name)] for name in ("all", "few")}
    assert not any("first_loss" in reward or reward["estimated"] for reward in parts["all"])
    assert all("first_loss" in reward or reward["estimated"] for reward in parts["few"])


def test_hyperparameters_may_come_from_a_yaml_file(run_cli, material, tmp_path):
    hyper = {"warmup_episodes": 2, "tau": 1e-05, "policy_kwargs.net_arch": [8]}
    given = {"algo": "td3", "episodes": 5, "hyper": hyper, "budget": {"macs": 0.5}, "baselines": []}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    out = tmp_path / "out"
    assert run_cli("train", *material.flags, "--config", tmp_path / "c.yaml", "--out", out).code == 0
    identity = read(out / "config.json")
    assert (identity["algo"], identity["budget"]) == ("td3", ["macs=0.5"])
    assert set(identity["hyper"]) == {"warmup_episodes=2", "tau=1e-05", "policy_kwargs.net_arch=[8]"}
    policy = read(out / "policy" / "policy.json")
    assert (policy["algorithm"], policy["shape"]["net_arch"]) == ("td3", [8])
    assert list(read(out / "metrics.json")["rows"]) == ["dense", "uniform", "learned"]


class TestBuiltin:
    """The policy that ships with the package."""

    def test_it_prunes_any_network_at_once(self, run_cli, flags, tmp_path):
        assert BUILTIN.is_dir()
        policy = ["--policy", "builtin", "--budget", "macs=0.25"]
        outcome = run_cli("prune", *flags, *policy, "--out", tmp_path / "out")
        assert outcome.code == 0, outcome.err
        assert within(tmp_path / "out", 0.25)

    def test_a_run_goes_on_from_it(self, run_cli, material, tmp_path):
        algorithm = read(BUILTIN / "policy.json")["algorithm"]
        init = ["--init-policy", "builtin", "--algo", algorithm, "--episodes", "3", "--baselines"]
        assert run_cli("train", *material.flags, *init, "--out", tmp_path / "out").code == 0

    def test_it_was_learned_on_a_range_of_budgets(self):
        assert any(".." in budget for budget in read(BUILTIN / "policy.json")["learned_on"]["budget"])
