"""Train, prune, evaluate and describe on a small network, end to end through the command line."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from prunegym.envs import LayerPruningEnv
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.storage.compressed import load_compressed
from prunegym.scripts.benchmarks.environment import time_episodes
from prunegym.scripts.cli import VERBS
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.train import verdict
from tests.envs.conftest import make_small_env
from tests.pruning.example_networks import randomised
from tests.pruning.oracles import counted_macs, counted_params
from tests.scripts.conftest import in_own_process

pytestmark = pytest.mark.runs

ROWS = ["dense", "uniform", "random", "learned"]
METRICS = {"accuracy", "score", "agreement", "macs", "params", "bytes", "latency_ms"}
INSTALLED = Path(sys.executable).with_name("prunegym")


def read(path):
    return json.loads(path.read_text())


def without_latency(row):
    return {name: value for name, value in row.items() if name != "latency_ms"}


def test_train_writes_everything_and_prints_its_metrics_as_json(finished_run):
    written = {path.name for path in finished_run.iterdir()}
    files = {"config.json", "metrics.json", "plan.json", "episodes.jsonl"}
    assert written >= files | {"policy", "compressed", "tensorboard", "checkpoint"}
    metrics = read(finished_run / "metrics.json")
    assert read(finished_run.parent / "stdout.json") == metrics
    assert list(metrics["rows"]) == ROWS
    assert all(set(row) == METRICS for row in metrics["rows"].values())
    assert metrics["gated_groups"]["dense"] == 0
    config = read(finished_run / "config.json")
    assert (config["budget"], config["episodes"], config["seed"]) == (["macs=0.5"], 10, 0)
    assert "train.py" in config["command"]


def test_every_evaluated_plan_is_written_down(finished_run):
    log = [json.loads(line) for line in (finished_run / "episodes.jsonl").read_text().splitlines()]
    assert [entry["by"] for entry in log] == ["dyna-ppo"] * 10 + ["random"] * 10
    metrics = read(finished_run / "metrics.json")
    assert log[9]["plan"] == metrics["candidates"]["final"]["plan"]
    best = max(log[:9], key=lambda entry: entry["reward"]["total"])
    assert best["plan"] == metrics["candidates"]["best"]["plan"]
    assert metrics["plans"]["random"] in [entry["plan"] for entry in log[10:]]


def test_what_is_known_of_each_group_is_recorded_with_the_plans(finished_run):
    metrics = read(finished_run / "metrics.json")
    assert list(metrics["plans"]) == ROWS[1:]
    assert [group["name"] for group in metrics["sites"]] == ["stem.0", "a.0", "c.0"]
    assert all(len(group["errors"]) == 3 for group in metrics["sites"])
    assert metrics["reasons"]


def test_every_row_is_within_the_budget_and_none_uses_more_than_uniform(finished_run):
    rows = read(finished_run / "metrics.json")["rows"]
    assert rows["uniform"]["macs"] <= 0.5 * rows["dense"]["macs"]
    assert max(rows["random"]["macs"], rows["learned"]["macs"]) <= rows["uniform"]["macs"]
    assert rows["dense"]["accuracy"] > 0.5  # else the comparison below would mean little


def test_agent_and_search_may_use_no_more_than_uniform_did(run_cli, material, tmp_path, monkeypatch):
    budgets, set_budget = [], LayerPruningEnv.set_budget
    monkeypatch.setattr(
        LayerPruningEnv, "set_budget", lambda env, budget: budgets.append(budget) or set_budget(env, budget)
    )
    run_cli("train", *material.flags, "--budget", "macs=0.5", "--episodes", "2", "--out", tmp_path / "out")
    rows = read(tmp_path / "out" / "metrics.json")["rows"]
    used = rows["uniform"]["macs"] / rows["dense"]["macs"]
    assert [budget.shares for budget in budgets] == [{"macs": used}]
    assert used < 0.5


def test_the_learned_row_is_the_candidate_that_validates_better(finished_run):
    metrics = read(finished_run / "metrics.json")
    final, best = metrics["candidates"]["final"], metrics["candidates"]["best"]
    chosen = final if final["validation"] >= best["validation"] else best
    assert read(finished_run / "plan.json") == {"version": 2, "decisions": chosen["plan"]}
    assert metrics["learned_is"] == ("final policy" if chosen is final else "best plan seen")


def test_the_recorded_figures_are_those_of_the_network_that_was_written(finished_run, material):
    row = read(finished_run / "metrics.json")["rows"]["learned"]
    loaded = load_compressed(finished_run / "compressed", network=material.model)
    assert row["params"] == counted_params(loaded.model)
    assert row["bytes"] == (finished_run / "compressed" / "model.safetensors").stat().st_size
    assert without_latency(loaded.manifest.evaluation.to_dict()) == without_latency(row)


@pytest.mark.parametrize("path", ["", "compressed"])
def test_evaluating_in_a_new_process_gives_the_very_accuracy(finished_run, material, path):
    flags = ["--compressed", finished_run / path, "--model", material.model, "--json"]
    outcome = in_own_process("scripts/evaluate.py", *flags)
    row = read(finished_run / "metrics.json")["rows"]["learned"]
    assert outcome.code == 0, outcome.err
    measured = json.loads(outcome.out)
    assert without_latency(measured) == without_latency(row)
    assert measured["latency_ms"] > 0


def test_evaluating_the_dense_network(run_cli, material, finished_run, tmp_path):
    outcome = run_cli("evaluate", *material.flags, "--json", "--out", tmp_path / "dense")
    row = read(finished_run / "metrics.json")["rows"]["dense"]
    assert without_latency(json.loads(outcome.out)) == without_latency(row)
    assert read(tmp_path / "dense" / "metrics.json") == json.loads(outcome.out)


def test_evaluate_writes_nothing_unless_asked_and_shows_a_table(run_cli, material, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_cli("evaluate", *material.flags)
    assert "parameters" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_pruning_by_the_plan_gives_the_learned_network_bit_for_bit(run_cli, material, finished_run, tmp_path):
    plan = ["--plan", finished_run / "plan.json"]
    outcome = run_cli("prune", *material.flags, *plan, "--out", tmp_path / "out", "--json")
    rows, trained = json.loads(outcome.out)["rows"], read(finished_run / "metrics.json")["rows"]
    assert without_latency(rows["pruned"]) == without_latency(trained["learned"])
    weights = Path("compressed") / "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (finished_run / weights).read_bytes()
    assert read(tmp_path / "out" / "plan.json") == read(finished_run / "plan.json")


def test_pruning_by_the_policy_makes_its_final_plan_again(run_cli, material, finished_run, tmp_path):
    metrics = read(finished_run / "metrics.json")
    budget = metrics["rows"]["uniform"]["macs"] / metrics["rows"]["dense"]["macs"]
    policy = ["--policy", finished_run / "policy", "--budget", f"macs={budget!r}"]
    assert run_cli("prune", *material.flags, *policy, "--out", tmp_path / "out").code == 0
    assert read(tmp_path / "out" / "plan.json")["decisions"] == metrics["candidates"]["final"]["plan"]


@pytest.mark.parametrize("how", [[], ["--allocation", "uniform"]])
def test_pruning_evenly_gives_the_uniform_row(run_cli, material, finished_run, tmp_path, how):
    outcome = run_cli("prune", *material.flags, *how, "--out", tmp_path / "out", "--json")
    trained = read(finished_run / "metrics.json")["rows"]["uniform"]
    assert without_latency(json.loads(outcome.out)["rows"]["pruned"]) == without_latency(trained)


def test_pruning_by_ratio_asks_the_same_of_every_group(run_cli, material, tmp_path):
    ratios = ["--static-ratio", "0.5", "--runtime-ratio", "0.25"]
    outcome = run_cli("prune", *material.flags, *ratios, "--out", tmp_path / "out")
    decisions = read(tmp_path / "out" / "plan.json")["decisions"]
    assert {one["static_ratio"] for one in decisions.values()} == {0.5}
    assert {name: one.get("runtime_ratio", 0.0) for name, one in decisions.items()} == {
        "stem.0": 0.0,  # the trunk, which takes no gate
        "a.0": 0.25,
        "c.0": 0.25,
    }
    assert "pruned (2 groups): for each input, units are skipped" in outcome.out


def test_a_statically_pruned_network_costs_what_is_counted_on_it(run_cli, material, tmp_path):
    run_cli("prune", *material.flags, "--static-ratio", "0.4", "--out", tmp_path / "out")
    row = read(tmp_path / "out" / "metrics.json")["rows"]["pruned"]
    small = load_compressed(tmp_path / "out" / "compressed", network=material.model).model
    assert row["macs"] == counted_macs(small, torch.zeros(1, 8, 8))


def test_overwriting_replaces_the_whole_run(run_cli, material, tmp_path):
    flags = ["prune", *material.flags, "--out", tmp_path / "out"]
    assert run_cli(*flags).code == 0
    (tmp_path / "out" / "left-over").touch()
    assert run_cli(*flags, "--static-ratio", "0.75", "--overwrite").code == 0
    assert not (tmp_path / "out" / "left-over").exists()
    assert read(tmp_path / "out" / "config.json")["static_ratio"] == 0.75


def test_describe_prints_groups_and_reachable_budgets(run_cli, material, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*material.flags, "--protect", "c.*"]
    record = json.loads(run_cli("describe", *flags, "--json").out)
    groups = {group["name"]: group for group in record["groups"]}
    assert groups["stem.0"]["layers"] == ["stem.0", "b.0"]
    assert (groups["a.0"]["units"], groups["a.0"]["frozen"]) == (12, None)
    dense = 9 * 64 * (8 + 8 * 12 + 12 * 8) + 9 * 9 * 8 * 10 + 40
    assert groups["a.0"]["macs_share"] == pytest.approx(9 * 64 * (8 * 12 + 12 * 8) / dense)
    assert groups["c.0"]["frozen"] == "protected by --protect"
    assert groups["c.0"]["macs_share"] is None
    assert "output" in groups["linear"]["frozen"]
    assert list(record["budgets"]) == ["macs", "params", "bytes", "bops"]
    assert all(0 < low < high == 1 for low, high in record["budgets"].values())
    table = run_cli("describe", *flags).out
    assert "2 prunable channel groups" in table
    assert list(tmp_path.iterdir()) == []


def test_describe_names_a_budget_that_can_be_asked_for(run_cli, material, tmp_path):
    lines = run_cli("describe", *material.flags).out.splitlines()
    shares = [f"{line.split()[1][:-1]}={line.split()[2]}" for line in lines if line.startswith("budget")]
    assert [share.split("=")[0] for share in shares] == ["macs", "params", "bytes", "bops"]
    flags = ["--budget", *shares, "--out", tmp_path / "out"]
    assert run_cli("prune", *material.flags, *flags).code == 0


def test_describe_heeds_the_largest_static_ratio(run_cli, material):
    def smallest(*flags):
        return json.loads(run_cli("describe", *material.flags, *flags, "--json").out)["budgets"]["macs"][0]

    assert smallest() == smallest("--max-static-ratio", "0.9") < smallest("--max-static-ratio", "0.5") < 1


def test_describe_without_weights_and_of_a_compressed_network(run_cli, material, tmp_path):
    assert run_cli("describe", "--model", "cifar_resnet20").out.count("budget") == 4
    run_cli("prune", *material.flags, "--static-ratio", "0.5", "--out", tmp_path / "out")
    flags = ["--compressed", tmp_path / "out", "--model", material.model, "--json"]
    groups = json.loads(run_cli("describe", *flags).out)["groups"]
    assert {group["name"]: group["units"] for group in groups} == {
        "stem.0": 4,
        "a.0": 6,
        "c.0": 5,
        "linear": 4,
    }


def test_a_yaml_file_says_what_flags_say(run_cli, material, tmp_path):
    flags = ["--budget", "macs=0.6", "params=0.7", "--protect", "c.*", "--seed", "3", "--quiet"]
    named = {"model": material.model, "weights": str(material.weights), "data": f"npz:{material.data}"}
    shape = {"input_size": [1, 8, 8], "mean": [0.5], "std": 0.25}
    given = {
        "budget": ["macs=0.6", "params=0.7"],
        "protect": ["c.*"],
        "seed": 3,
        "quiet": True,
        "json": False,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**named, **shape, **given, "device": "cpu"}))
    by_yaml = ["prune", "--config", tmp_path / "c.yaml", "--out", tmp_path / "yaml"]
    assert run_cli(*by_yaml).code == 0
    assert run_cli("prune", *material.flags, *flags, "--out", tmp_path / "flags").code == 0
    for name in ("metrics.json", "plan.json"):
        assert read(tmp_path / "yaml" / name) == read(tmp_path / "flags" / name)
    first, second = (read(tmp_path / name / "config.json") for name in ("yaml", "flags"))
    assert {key for key in first if first[key] != second[key]} == {"out"}
    assert run_cli(*by_yaml, "--overwrite", "--budget", "macs=0.9").code == 0  # the command line wins
    assert read(tmp_path / "yaml" / "config.json")["budget"] == ["macs=0.9"]
    assert run_cli(*by_yaml, "--overwrite", "--protect", "a.*").code == 0
    assert read(tmp_path / "yaml" / "config.json")["protect"] == ["a.*"]  # not added to the file's


def test_budgets_may_be_given_one_by_one(run_cli, material, tmp_path):
    flags = [*material.flags, "--budget", "macs=0.6", "--budget", "params=0.7", "--out", tmp_path / "out"]
    assert run_cli("prune", *flags).code == 0
    assert read(tmp_path / "out" / "config.json")["budget"] == ["macs=0.6", "params=0.7"]


def test_what_a_run_is_made_from_is_not_overwritten(run_cli, material, tmp_path):
    run = tmp_path / "run"
    assert run_cli("prune", *material.flags, "--out", run).code == 0
    before = (run / "plan.json").read_bytes()
    outcome = run_cli("prune", *material.flags, "--plan", run / "plan.json", "--out", run, "--overwrite")
    assert outcome.code == 2
    assert "give another --out" in outcome.err
    assert (run / "plan.json").read_bytes() == before


def test_the_embedded_default_is_the_model_and_data_unless_named(run_cli, tmp_path):
    save_file(randomised(resolve_network("digits_resnet").build()).state_dict(), tmp_path / "w.safetensors")
    flags = ["--weights", tmp_path / "w.safetensors", "--episodes", "2", "--out", tmp_path / "out", "--quiet"]
    outcome = run_cli("train", *flags)
    assert outcome.code == 0, outcome.err
    assert "digits_resnet at macs=0.5, 2 evaluations each, on the test images" in outcome.out
    record = json.loads(run_cli("evaluate", "--compressed", tmp_path / "out", "--json").out)
    row = read(tmp_path / "out" / "metrics.json")["rows"]["learned"]
    assert without_latency(record) == without_latency(row)


def test_the_installed_command_lists_its_verbs():
    outcome = in_own_process(INSTALLED)
    assert outcome.code == 0, outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines()[2:]] == [*VERBS]
    assert in_own_process(INSTALLED, "describ").code == 2


@pytest.mark.parametrize("verb", [*VERBS])
def test_every_verb_has_its_help(verb, run_cli, capfd):
    with pytest.raises(SystemExit) as done:
        run_cli(verb, "--help")
    assert done.value.code == 0
    assert f"usage: prunegym {verb}" in capfd.readouterr().out


def test_the_benchmark_divides_an_episode_into_deciding_and_evaluating():
    config = BenchmarkConfig("env", episodes=2)
    record = time_episodes(make_small_env("projected"), config)
    assert set(record) == {"step_ms", "steps_per_s", "episodes_per_s", "evaluation_share"}
    assert record["steps_per_s"] == pytest.approx(1000 / record["step_ms"])
    assert 0 < record["evaluation_share"] < 1


@pytest.mark.parametrize(
    ("accuracy", "macs", "said"),
    [
        (0.85, 100, "learned beats uniform by 5.0 points at no more MACs"),
        (0.80, 90, "learned does NOT beat uniform on this seed: +0.0 points at 0.900 times its MACs"),
        (0.70, 100, "learned does NOT beat uniform on this seed: -10.0 points at 1.000 times its MACs"),
        (0.85, 101, "learned does NOT beat uniform on this seed: +5.0 points at 1.010 times its MACs"),
    ],
)
def test_the_verdict_says_so_where_learning_did_not_help(accuracy, macs, said):
    rows = {"uniform": Evaluation(0.8, 100, 10, 10), "learned": Evaluation(accuracy, macs, 10, 10)}
    assert verdict(rows, "learned") == said


def test_a_real_resnet20_has_twelve_prunable_groups(run_cli, resnet20):
    record = json.loads(run_cli("describe", *resnet20, "--json").out)
    prunable = [group["name"] for group in record["groups"] if group["frozen"] is None]
    assert len(prunable) == 12
    assert "conv1" in prunable


@pytest.mark.slow
def test_a_real_resnet20_is_trained_and_evaluated(resnet20, tmp_path):
    flags = ["--budget", "macs=0.6", "--episodes", "9", "--out", tmp_path / "r20", "--quiet"]
    outcome = in_own_process("scripts/train.py", *resnet20, *flags)
    assert outcome.code == 0, outcome.err
    rows = read(tmp_path / "r20" / "metrics.json")["rows"]
    assert rows["dense"]["accuracy"] > 0.9
    assert rows["uniform"]["macs"] <= 0.6 * rows["dense"]["macs"]
    again = in_own_process("scripts/evaluate.py", "--compressed", tmp_path / "r20", "--json")
    assert without_latency(json.loads(again.out)) == without_latency(rows["learned"])


@pytest.mark.slow
def test_the_digits_task_is_learned_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "cache"))
    flags = ["--budget", "macs=0.2", "--episodes", "9", "--out", tmp_path / "digits", "--quiet"]
    outcome = in_own_process("scripts/train.py", *flags)
    assert outcome.code == 0, outcome.err
    rows = read(tmp_path / "digits" / "metrics.json")["rows"]
    assert rows["dense"]["accuracy"] >= 0.975
    assert rows["learned"]["accuracy"] > 0.1
