"""Each mistake gets one line on standard error and the right exit code, and leaves nothing behind."""

import json
import math
import os
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import prunegym.scripts.report
from prunegym.scripts.options import train
from tests.scripts.conftest import QUICK

pytestmark = pytest.mark.runs


@pytest.fixture
def flags(material, tmp_path):
    return [*material.flags, "--out", tmp_path / "out"]


@pytest.fixture
def with_arrays(material, tmp_path):
    """Flags with an altered copy of the images and labels."""

    def write(**changed):
        np.savez(tmp_path / "changed.npz", **{**material.arrays(), **changed})
        return [*material.flags, "--data", f"npz:{tmp_path / 'changed.npz'}", "--out", tmp_path / "out"]

    return write


@pytest.fixture
def with_weights(material, tmp_path):
    """Flags with an altered copy of the weights; None takes a tensor away."""

    def write(**changed):
        state = {**load_file(material.weights), **changed}
        kept = {name: tensor for name, tensor in state.items() if tensor is not None}
        save_file(kept, tmp_path / "changed.safetensors")
        return [*material.flags, "--weights", tmp_path / "changed.safetensors", "--out", tmp_path / "out"]

    return write


@pytest.fixture
def compressed(finished_run, tmp_path):
    """A copy of a compressed network, to be damaged."""
    return shutil.copytree(finished_run / "compressed", tmp_path / "compressed")


def altered(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "no verb named 'trian'. Did you mean 'train'?"),
        (["prune", "--device=--", "--out", "out"], "argument --device is '--', which is no value"),
        (
            ["train", "--model", "cifar_resnet21"],
            "no network named 'cifar_resnet21'. Did you mean 'cifar_resnet",
        ),
        (["train", "--epsiodes", "3"], "unknown argument --epsiodes; did you mean --episodes?"),
        (["prune", "--algo", "ppo"], "unknown argument --algo"),
        (
            ["train", "--episodes", "0"],
            "argument --episodes: must be a whole number from 1 to 10000000, got '0'",
        ),
        (["train", "--episodes", "many"], "argument --episodes: must be a whole number from 1 to 10000000"),
        (["train", "--algo", "ppoo"], "no algorithm named 'ppoo'. Did you mean 'ppo'?"),
        (["train", "--algo", "cma_es"], "no algorithm named 'cma_es'. Did you mean 'cma-es'?"),
        (["train", "--baselines", "randm"], "argument --baselines: invalid choice: 'randm'"),
        (["train", "--baselines", "ppo"], "argument --baselines: invalid choice: 'ppo'"),
        (
            ["train", "--budget", "macs=0.3..0.8", "--baselines", "random"],
            "--baselines go with one network and one budget; leave them out",
        ),
        (
            ["train", "--also", "cifar_resnet20", "--baselines", "random"],
            "--baselines go with one network and one budget; leave them out",
        ),
        (["train", "--out", "/dev/null/x"], "cannot write into /dev/null; give another --out"),
        (["prune", "--out", "/dev/null/x"], "cannot write into /dev/null; give another --out"),
        (["train", "--n-envs", "0"], "argument --n-envs: must be a whole number from 1 to 1024, got '0'"),
        (["train", "--first-images", "0"], "--first-images: must be a whole number from 1 to"),
        (["train", "--hyper", "tau=0.1"], "ppo has no hyper-parameter 'tau'."),
        (["train", "--hyper", "gama=1"], "ppo has no hyper-parameter 'gama'. Did you mean 'gamma'?"),
        (
            ["train", "--hyper", "gamma"],
            "expected a hyper-parameter such as learning_rate=0.001, got 'gamma'",
        ),
        (
            ["train", "--hyper", "n_epochs=many"],
            "ppo: n_epochs must be a whole number from 1 to 1000, such as its default 20, got 'many'",
        ),
        (
            ["train", "--hyper", "n_epochs=0"],
            "ppo: n_epochs must be a whole number from 1 to 1000, such as its default 20, got 0",
        ),
        (
            ["train", "--hyper", "policy_kwargs=3"],
            "no hyper-parameter 'policy_kwargs'. Did you mean 'policy_kwargs.net_arch'?",
        ),
        (
            ["train", "--hyper", "policy_kwargs.net_arch=[64, x]"],
            "net_arch must be a list of at most 10 whole numbers from 1 to 4096, such as its default [64",
        ),
        (["train", "--algo", "random", "--hyper", "gamma=1"], "random learns no policy; leave out --hyper"),
        (["train", "--algo", "cma-es", "--init-policy", "x"], "cma-es learns no policy; leave out"),
        (
            ["train", "--algo", "random", "--budget", "macs=0.3..0.8"],
            "random searches for one plan; give one",
        ),
        (["train", "--algo", "cma-es", "--also", "cifar_resnet20"], "cma-es searches for one plan; give one"),
        (["train", "--also", "digits_resnet"], "a network is named twice among digits_resnet, digits_resnet"),
        (["train", "--also", "a=b", "--also", "a=c"], "a network is named twice among digits_resnet, a, a"),
        (["prune", "--out", "x", "--samples", "3"], "--samples goes with --policy"),
        (
            ["prune", "--out", "x", "--policy", "y", "--samples", "0"],
            "--samples: must be a whole number from 1 to 100000",
        ),
        (["prune", "--out", "x", "--budget", "macs=0.3..0.8"], "macs=0.3..0.8 is a range, which only train"),
        (["train", "--data", "digit"], "no kind of data named 'digit'. Did you mean 'digits'?"),
        (
            ["train", "--data", "none", "--calibration", "data"],
            "there is no data to calibrate on; choose one",
        ),
        (["train", "--data", "none", "--calibration", "distiled"], "Did you mean 'distilled'?"),
        (["train", "--eval-data", "digits"], "--eval-data goes with --data none"),
        (["train", "--config"], "argument --config: expected one argument"),
        (["prune", "--allocation", "even"], "invalid choice: 'even'"),
        (["prune"], "name the folder for the results with --out"),
        (["benchmark", "everything"], "invalid choice: 'everything'"),
        (["benchmark", "env", "--assets", "nowhere"], "there is no folder nowhere; name it with --assets"),
        (["describe", "--compensation", "last-squares"], "Did you mean 'least-squares'?"),
        (["describe", "--compressed", "x", "--weights", "y"], "knows its own; leave out --weights"),
        (["evaluate", "--compressed", "x", "--weights", "y"], "knows its own; leave out --weights"),
        (["describe", "--compressed", "x", "--input-size", "3", "8", "8"], "leave out --input-size"),
        (["evaluate", "--compressed", "x", "--mean", "0.5"], "knows its own; leave out --mean"),
        (["evaluate", "--compressed", "x", "--std", "0.5"], "knows its own; leave out --std"),
        (["describe", "--max-static-ratio", "1.5"], "the limit: static_ratio must lie in [0, 1)"),
        (["describe", "--techniques", "channel"], "no technique named 'channel'. Did you mean 'channels'?"),
        (
            ["describe", "--techniques", "channels", "--max-runtime-ratio", "0.3"],
            "add --techniques channels gates",
        ),
        (["describe", "--compressed", "nowhere"], "cannot read nowhere/structure.json"),
    ],
)
def test_wrong_words_on_the_command_line(refused, argv, expected):
    assert expected in refused(*argv)


@pytest.mark.parametrize("text", ["[1, 2]", '{"settings": {}, "results": 3}', "{", '{"results": {}}'])
def test_a_file_that_holds_no_results_is_not_added_to(refused, tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    line = refused("benchmark", "data-free", "--assets", tmp_path, "--out", file)
    assert "give another --out" in line
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["reward", "--out", "results.json"], "--out goes with data-free, runtime, per-input, search, "),
        (["env", "--table", "x.md"], "--table goes with coverage, faults; leave it out with env"),
        (
            ["search", "--seed", "1"],
            "--seed goes with env, runtime, coverage, depth, reward, faults; leave it out wi",
        ),
        (["data-free", "--episodes", "9"], "leave it out with data-free"),
        (["env", "--share", "0.5"], "--share goes with faults; leave it out with env"),
        (["faults", "--share", "0"], "argument --share: must be a number from 0.001 to 1, got '0'"),
        (["faults", "--share", "nan"], "argument --share: must be a number from 0.001 to 1, got 'nan'"),
        (["faults", "--only", "kills/x"], "there is no case kills/x; there are kills/0 to kills/"),
        (["transfer", "--networks", "cifar_resnet20"], "leave it out with transfer"),
        (["search", "--networks", "cifar_resnet32"], "are those of its cells here: cifar_resnet20, cifar_re"),
    ],
)
def test_a_benchmark_takes_the_flags_that_it_heeds(refused, tmp_path, argv, line):
    assert line in refused("benchmark", *argv, "--assets", tmp_path)


def test_a_file_of_results_of_other_settings_is_not_added_to(refused, tmp_path):
    file = tmp_path / "results.json"
    text = json.dumps({"settings": {"benchmark": "search", "episodes": 400}, "results": {}})
    file.write_text(text)
    command = ["benchmark", "search", "--assets", tmp_path, "--out", file, "--episodes", "50"]
    line = refused(*command)
    assert "holds results of benchmark search, episodes 400, not of benchmark search, episodes 50; " in line
    assert file.read_text() == text


@pytest.mark.parametrize("verb", ["train", "prune"])
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--criterion", "l11"], "no criterion named 'l11'. Did you mean 'l1'?"),
        (["--compensation", "least"], "no compensation named 'least'"),
        (["--budget", "mac=0.5"], "no budget named 'mac'. Did you mean 'macs'?"),
        (["--budget", "half"], "expected a budget such as macs=0.5 or macs=0.3..0.8, got 'half'"),
        (["--budget", "macs=0.8..0.3"], "goes from the smaller share to the larger, got 0.8..0.3"),
        (["--budget", "macs=0.3..2"], "must lie in (0, 1], got 2.0"),
        (["--budget", "macs=0.3.."], "expected a budget such as macs=0.5 or macs=0.3..0.8"),
        (["--max-static-ratio", "1"], "static_ratio must lie in [0, 1), got 1.0"),
        (["--max-static-ratio", "-0.1"], "static_ratio must lie in [0, 1), got -0.1"),
        (["--max-runtime-ratio", "nan"], "runtime_ratio must lie in [0, 1), got nan"),
        (["--max-runtime-ratio", "half"], "argument --max-runtime-ratio: invalid"),
        (["--budget", "macs=1.5"], "must lie in (0, 1], got 1.5"),
        (["--budget", "macs=0.5", "macs=0.4"], "macs is given twice"),
        (["--only", "stm.*"], "no layer matches the pattern 'stm.*'. Did you mean 'stem.*'?"),
        (["--protect", "z*"], "no layer matches the pattern 'z*'"),
        (["--protect", "*"], "there is nothing to decide"),
        (["--device", "warp"], "--device warp cannot be used here"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--weights", "nowhere.th"], "there is no weights file nowhere.th"),
        (["--data", "npz:nowhere.npz"], "there is no data file nowhere.npz"),
        (["--mean", "0.5", "0.5"], "one number per input channel (1), got 2 and 1"),
        (["--round-to", "0"], "argument --round-to: must be a whole number from 1 to 65536, got '0'"),
    ],
)
def test_wrong_words_before_the_work_begins(refused, flags, verb, argv, expected):
    assert expected in refused(verb, *flags, *argv)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has that device")
def test_a_device_that_is_not_there(refused, flags):
    assert "--device cuda cannot be used here" in refused("train", *flags, "--device", "cuda")


@pytest.mark.parametrize("verb", ["train", "prune"])
def test_an_impossible_budget_names_the_smallest_one_which_can_be_asked_for(refused, run_cli, flags, verb):
    line = refused(verb, *flags, "--budget", "macs=0.001", code=3)
    smallest = line.split("the smallest is ")[1].split(",")[0]
    assert run_cli("prune", *flags, "--budget", f"macs={smallest}").code == 0


@pytest.mark.parametrize("ratio", ["1.0", "-0.1", "nan", "2"])
@pytest.mark.parametrize("flag", ["--static-ratio", "--runtime-ratio"])
def test_a_ratio_out_of_range(refused, flags, flag, ratio):
    name = flag.strip("-").replace("-", "_")
    assert f"{name} must lie in [0, 1), got {float(ratio)}" in refused("prune", *flags, flag, ratio)


def test_ratios_beside_a_plan(refused, flags, finished_run):
    plan = finished_run / "plan.json"
    assert "give one of them" in refused("prune", *flags, "--plan", plan, "--static-ratio", "0.5")
    assert "not allowed with" in refused("prune", *flags, "--plan", plan, "--policy", finished_run)


def test_weights_that_do_not_fit_list_the_keys(refused, with_weights):
    changed = with_weights(**{"linear.bias": None, "extra.weight": torch.ones(2)})
    line = refused("prune", *changed)
    assert "does not fit the network; missing: linear.bias; unexpected: extra.weight" in line
    line = refused("prune", *with_weights(**{"linear.bias": torch.ones(7)}))
    assert "linear.bias is [7], the network has [4]" in line


def test_weights_are_needed(refused, material, tmp_path):
    flags = ["--model", material.model, "--input-size", "1", "8", "8", "--data", f"npz:{material.data}"]
    assert "is untrained: name its trained weights with --weights" in refused(
        "train", *flags, "--out", tmp_path / "out"
    )


@pytest.mark.parametrize("tensor", ["a.0.weight", "a.1.running_mean", "a.1.running_var"])
def test_weights_or_statistics_with_nan(refused, with_weights, material, tensor):
    poisoned = load_file(material.weights)[tensor]
    poisoned.view(-1)[0] = math.nan
    assert f"{tensor} holds NaN" in refused("train", *with_weights(**{tensor: poisoned}))


def test_truncated_files(refused, flags, material, tmp_path):
    for name, flag, prefix in (("weights", "--weights", ""), ("data", "--data", "npz:")):
        whole = getattr(material, name).read_bytes()
        short = tmp_path / getattr(material, name).name
        short.write_bytes(whole[: len(whole) // 2])
        assert "is truncated, damaged" in refused("prune", *flags, flag, f"{prefix}{short}")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"train_images": np.zeros((160, 9, 9), np.uint8)}, "[1, 9, 9]"),
        ({"train_images": np.zeros((160, 8, 8, 3), np.uint8)}, "[3, 8, 8]"),
        ({"test_images": np.zeros((60, 64), np.uint8)}, "must be [N, H, W, C], or [N, H, W]"),
        ({"test_images": np.zeros((60, 8, 8), np.float32)}, "must be uint8 in 0..255, but is float32"),
        ({"test_images": np.full((60, 8, 8), np.nan)}, "holds NaN"),
        ({"test_labels": np.zeros(59, np.int64)}, "60 test_images, but 59 test_labels"),
        ({"test_labels": np.zeros(60)}, "must be whole numbers"),
        ({"test_labels": np.full(60, 4)}, "labels must lie in [0, 4)"),
        ({"train_labels": np.full(160, -1)}, "labels must lie in [0, 4)"),
    ],
)
def test_wrong_images_and_labels(refused, with_arrays, changed, expected):
    assert expected in refused("prune", *with_arrays(**changed))


def test_labels_out_of_range_for_a_compressed_network(refused, with_arrays, material, finished_run, tmp_path):
    with_arrays(test_labels=np.full(60, 4))
    flags = ["--model", material.model, "--data", f"npz:{tmp_path / 'changed.npz'}"]
    assert "labels must lie in [0, 4)" in refused("evaluate", "--compressed", finished_run, *flags)


def test_a_network_that_does_not_run_on_its_input_size(refused, material, tmp_path):
    flags = ["--model", material.model, "--weights", material.weights, "--data", f"npz:{tmp_path / 'x.npz'}"]
    images = {f"{part}_images": np.zeros((20, 8, 8, 3), np.uint8) for part in ("train", "test")}
    labels = {f"{part}_labels": np.zeros(20, np.int64) for part in ("train", "test")}
    np.savez(tmp_path / "x.npz", **images, **labels)
    line = refused("prune", *flags, "--input-size", "3", "8", "8", "--out", tmp_path / "out")
    assert "does not run on an image of shape [3, 8, 8]" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot read the plan"),
        ("[]", "is not a compression plan of version 2"),
        ('{"version": 1, "decisions": {}}', "is not a compression plan of version 2"),
        ('{"version": 2, "decisions": []}', "'decisions' must map sites to amounts"),
        (
            '{"version": 2, "decisions": {"a.0": {"static": 0.5}}}',
            "Did you mean 'static_ratio'? On: runtime_ratio",
        ),
        ('{"version": 2, "decisions": {"a.0": {"static_ratio": 1.0}}}', "must lie in [0, 1), got 1.0"),
        (
            '{"version": 2, "decisions": {"stem": {"static_ratio": 0.5}}}',
            "no site named 'stem'. Did you mean 'stem.0'?",
        ),
        ('{"version": 2, "decisions": {"linear": {"static_ratio": 0.5}}}', "group 'linear' is frozen"),
        (
            '{"version": 2, "decisions": {"stem.0": {"runtime_ratio": 0.5}}}',
            "'stem.0' takes no runtime_ratio",
        ),
    ],
)
def test_a_damaged_plan(refused, flags, tmp_path, text, expected):
    (tmp_path / "plan.json").write_text(text)
    assert expected in refused("prune", *flags, "--plan", tmp_path / "plan.json")


def test_a_damaged_policy(refused, flags, finished_run, tmp_path):
    assert "cannot read the policy" in refused("prune", *flags, "--policy", tmp_path / "none")
    folder = shutil.copytree(finished_run / "policy", tmp_path / "policy")
    altered(folder / "policy.json", lambda record: record.update(version=9))
    assert "expected a policy of version 4, got 9" in refused("prune", *flags, "--policy", folder)
    (folder / "policy.json").write_text('{"version": 1')
    assert "cannot read the policy" in refused("prune", *flags, "--policy", folder)
    shutil.copy(finished_run / "policy" / "policy.json", folder)
    tensors = folder / "policy.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    assert "is not the file that policy.json describes" in refused("prune", *flags, "--policy", folder)


def altered_policy(finished_run, folder, change):
    """Return a copy of a policy with another description."""
    policy = shutil.copytree(finished_run / "policy", folder)
    altered(policy / "policy.json", change)
    return policy


def see_further(record):
    record["observation"]["names"][-1] = "moon"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (see_further, "moon"),
        (lambda record: record["observation"].update(version=7), "version 7 there, 4 here"),
        (lambda record: record["observation"].update(normaliser={"mean": 0}), "normaliser {'mean': 0} there"),
        (lambda record: record.update(algorithm="dqn"), "no algorithm named 'dqn'"),
        (
            lambda record: record.update(shape={"net_arch": [64, "x"]}),
            "shape must hold a list of layer widths",
        ),
        (lambda record: record["shape"].update(net_arch=[5]), "does not fit policy.json"),
        (lambda record: record.pop("shape"), "shape missing; copy the policy anew"),
    ],
)
@pytest.mark.parametrize("verb", ["prune", "train"])
def test_a_policy_that_does_not_fit(refused, flags, finished_run, tmp_path, verb, change, expected):
    flag = {"prune": "--policy", "train": "--init-policy"}[verb]
    policy = altered_policy(finished_run, tmp_path / "policy", change)
    assert expected in refused(verb, *flags, flag, policy)


def test_a_policy_to_go_on_from(refused, flags, finished_run, tmp_path):
    assert "cannot read the policy" in refused("train", *flags, "--init-policy", tmp_path / "none")
    line = refused("train", *flags, "--init-policy", finished_run / "policy", "--algo", "sac")
    assert "is a policy of ppo, not of sac; use --algo dyna-ppo or ppo" in line
    policy = shutil.copytree(finished_run / "policy", tmp_path / "policy")
    tensors = policy / "policy.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    for also in ([], ["--budget", "macs=0.4..0.6"]):
        assert "is not the file that policy.json" in refused("train", *flags, "--init-policy", policy, *also)


def test_a_policy_to_go_on_from_is_not_overwritten(refused, material, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    line = refused("train", *material.flags, "--init-policy", run / "policy", "--out", run, "--overwrite")
    assert "give another --out" in line


def test_a_further_network_without_weights_or_with_wrong_ones(refused, flags, material):
    line = refused("train", *flags, "--also", "cifar_resnet20")
    assert "cifar_resnet20 is untrained: name its trained weights with --also cifar_resnet20=WEIGHTS" in line
    assert "there is no weights file" in refused("train", *flags, "--also", "cifar_resnet20=none.th")
    line = refused("train", *flags, "--also", f"cifar_resnet20={material.weights}")
    assert "does not fit the network" in line


def test_limits_and_ranges_that_no_plan_meets(refused, flags):
    assert "cannot be reached" in refused("train", *flags, "--max-static-ratio", "0", code=3)
    assert "cannot be reached" in refused("prune", *flags, "--max-static-ratio", "0.1", code=3)
    assert "macs=0.001 cannot be reached" in refused("train", *flags, "--budget", "macs=0.001..0.9", code=3)


def test_a_damaged_compressed_network(refused, material, compressed):
    evaluate = ["evaluate", "--compressed", compressed, "--model", material.model]
    structure, weights = compressed / "structure.json", compressed / "model.safetensors"
    whole = structure.read_text()
    altered(structure, lambda record: record.update(version=1))
    assert "is not a compressed network of version 4" in refused(*evaluate)
    structure.write_text(whole[:-50])
    assert "cannot read" in refused(*evaluate)
    structure.write_text(whole)
    altered(structure, lambda record: record.pop("techniques"))
    assert "is damaged (KeyError: 'techniques')" in refused(*evaluate)
    structure.write_text(whole)
    *most, last = weights.read_bytes()
    weights.write_bytes(bytes([*most, last ^ 1]))
    assert "is not the file that structure.json describes" in refused(*evaluate)
    weights.unlink()
    assert "cannot read" in refused(*evaluate)


def test_a_strangers_network_file_is_not_run_unasked(refused, compressed):
    assert "is not run unasked: name it with --model" in refused("evaluate", "--compressed", compressed)


def test_an_out_that_is_no_folder(refused, flags, tmp_path):
    (tmp_path / "file").touch()
    line = refused("prune", *flags, "--out", tmp_path / "file")
    assert f"cannot write into {tmp_path / 'file'}; give another --out" in line
    assert refused("prune", *flags, "--out", tmp_path / "file" / "below") == line


@pytest.mark.parametrize("verb", ["train", "prune", "evaluate"])
def test_an_out_that_holds_a_run_is_refused(refused, material, finished_run, verb):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    line = refused(verb, *material.flags, "--out", finished_run)
    way_out = "--resume or --overwrite" if verb == "train" else "--overwrite"
    assert f"already holds a run; give another --out, or {way_out}" in line
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_that_is_no_run_is_left_alone(refused, material, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    line = refused("prune", *material.flags, "--out", tmp_path, *overwrite)
    assert "is not the folder of a run and is left alone" in line


def test_resuming_what_is_no_run_or_another_one(refused, material, finished_run, tmp_path):
    rounds = ["--hyper", "evaluated_episodes=8", *QUICK]  # as the run was begun
    flags = [*material.flags, "--budget", "macs=0.5", *rounds, "--resume", "--out"]
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds no run to resume" in refused("train", *flags, tmp_path)
    line = refused("train", *flags, finished_run, "--seed", "4", "--episodes", "20")
    assert "was begun with another seed; repeat its flags" in line
    line = refused("train", *flags, finished_run, "--overwrite")
    assert "give one of them" in line
    (tmp_path / "config.json").write_text("[]")
    assert "is damaged" in refused("train", *flags, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "holds no run to resume" in refused("train", *flags, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epsiodes: 3", "unknown argument --epsiodes; did you mean --episodes?"),
        ("episodes: three", "argument --episodes: must be a whole number from 1 to"),
        ("- episodes", "must map flags to values"),
        ("episodes: [", "cannot read"),
        ("budget: {macs: half}", "'macs=half'"),
        ("episodes: {of: 3}", "argument --episodes: must be a whole number from 1 to"),
        ("hyper: {policy_kwargs: {net_arch: [8]}}", "no hyper-parameter 'policy_kwargs'"),
        ("[" * 10**4, "cannot read"),
        ("seed: 2026-13-45", "cannot read"),
        ("\x00", "cannot read"),
    ],
)
def test_a_wrong_yaml_file(refused, flags, tmp_path, text, expected):
    (tmp_path / "c.yaml").write_text(text)
    assert expected in refused("train", *flags, "--config", tmp_path / "c.yaml")


@pytest.mark.parametrize(("text", "address"), [("true", "auto"), ("local", "local"), ("false", None)])
def test_a_yaml_file_names_a_flag_whose_value_may_be_left_out(tmp_path, text, address):
    (tmp_path / "c.yaml").write_text(f"cluster: {text}")
    assert train.parse(["--config", str(tmp_path / "c.yaml")]).learning.cluster == address


BIG = "9" * 30


@pytest.mark.parametrize("value", [BIG, "-1", "9" * 5000, "nan", "inf", "x", "\x1b[31m"])
@pytest.mark.parametrize(
    ("verb", "flag", "low", "high"),
    [
        *((verb, "--seed", 0, 2147483647) for verb in ("train", "prune", "train-per-input", "finetune")),
        *((verb, "--seed", 0, 2147483647) for verb in ("describe", "evaluate", "latency", "export")),
        ("train", "--episodes", 1, 10000000),
        ("train", "--n-envs", 1, 1024),
        ("train", "--first-images", 1, 1000000000),
        ("train", "--round-to", 1, 65536),
        ("prune", "--samples", 1, 100000),
        ("export", "--opset", 1, 100),
        ("finetune", "--epochs", 0, 1000000),
        ("finetune", "--batch-size", 1, 1000000),
        ("finetune", "--shift", 0, 10000),
        ("train-per-input", "--episodes", 1, 10000000),
        ("train-per-input", "--rounds", 1, 1000),
        ("train-per-input", "--tune-epochs", 0, 10000),
    ],
)
def test_a_whole_number_has_a_range(refused, verb, flag, low, high, value):
    line = refused(verb, f"{flag}={value}")
    assert f"argument {flag}: must be a whole number from {low} to {high}, got '" in line
    assert len(line) < 200


@pytest.mark.parametrize("value", [BIG, "-1e99", "9" * 5000, "nan", "-inf", "x"])
@pytest.mark.parametrize(
    ("verb", "flag", "words"),
    [
        ("describe", "--mean", "must be a number from -1000 to 1000, got '"),
        ("describe", "--std", "must be a number from 1e-06 to 1000, got '"),
        ("finetune", "--lr", "must be a number from 1e-12 to 1000, got '"),
        ("finetune", "--weight-decay", "must be a number from 0 to 100, got '"),
    ],
)
def test_a_number_has_a_range(refused, verb, flag, words, value):
    assert f"argument {flag}: {words}" in refused(verb, f"{flag}={value}")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (["1", "8", "99999999"], "argument --input-size: must be a whole number from 1 to 16777216, got '9"),
        (
            ["1", "8", "16777216"],
            "an image must hold at most 16777216 numbers; give a smaller input size than",
        ),
        (["0", "8", "8"], "argument --input-size: must be a whole number from 1 to 16777216, got '0'"),
    ],
)
def test_an_input_size_has_a_range(refused, material, size, expected):
    assert expected in refused("describe", "--model", material.model, "--input-size", *size)


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    ("verb", "flags_with_text"),
    [
        (
            "train",
            ["--model", "--weights", "--data", "--out", "--init-policy", "--cluster", "--only", "--also"],
        ),
        ("train", ["--score", "--device", "--criterion", "--config", "--hyper", "--budget", "--baselines"]),
        ("prune", ["--policy", "--plan", "--out", "--techniques", "--allocation"]),
        ("export", ["--compressed", "--out", "--data"]),
        ("evaluate", ["--compressed", "--score"]),
        ("report", ["--out"]),
        ("benchmark", ["--assets", "--table"]),
    ],
)
def test_a_text_is_not_empty(refused, verb, flags_with_text, value):
    for flag in flags_with_text:
        assert f"argument {flag} is empty; name what is meant, or leave it out" in refused(
            verb, f"{flag}={value}"
        )
        assert f"argument {flag} is empty" in refused(verb, flag, value)


def test_a_byte_that_is_no_text_is_refused(refused, flags):
    assert r"--weights holds a character that is no text: 'a\udcff'" in refused(
        "prune", *flags, "--weights", "a\udcff"
    )


def test_weights_of_a_further_network_are_named(refused, flags):
    assert "--also a= names no file of weights; write --also a=WEIGHTS" in refused(
        "train", *flags, "--also", "a="
    )


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "1e999", "1e300"])
def test_a_figure_in_a_report_has_a_range(refused, finished_run, tmp_path, number):
    run = shutil.copytree(finished_run, tmp_path / "run")
    record = json.loads((run / "metrics.json").read_text())
    record["rows"]["dense"]["macs"] = "HERE"
    (run / "metrics.json").write_text(json.dumps(record).replace('"HERE"', number))
    line = refused("report", run)
    assert "metrics.json is damaged" in line
    assert len(line) < 400


def test_a_line_stays_short_whatever_a_file_holds(refused, flags, tmp_path):
    decisions = {"stem.0": {"static_ratio": "x" * 10**6}}
    (tmp_path / "plan.json").write_text(json.dumps({"version": 2, "decisions": decisions}))
    line = refused("prune", *flags, "--plan", tmp_path / "plan.json")
    assert len(line) < 650
    assert "site 'stem.0': static_ratio must be a finite number" in line


@pytest.mark.parametrize("where", ["flag", "yaml", "working folder"])
def test_a_name_that_is_no_utf_8_is_refused_before_it_is_recorded(
    refused, flags, material, tmp_path, monkeypatch, where
):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(material.data, folder / "data.npz")
    argv = ["--data", f"npz:{folder / 'data.npz'}"]
    if where == "yaml":
        (tmp_path / "c.yaml").write_text(r'data: "npz:caf\udce9/data.npz"')
        argv = ["--config", tmp_path / "c.yaml"]
        flags = [part for part in flags if part != "--data" and not str(part).startswith("npz:")]
    elif where == "working folder":
        monkeypatch.chdir(folder)
        argv = ["--data", "npz:data.npz"]
    line = refused("prune", *flags, *argv)
    assert (
        "the working folder" if where == "working folder" else "--data holds a character that is no"
    ) in line
    assert "; rename it" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "\n".join(
                ["only:", "- &a0 x", *(f"- &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(5))]
            ),
            "longer than 100000 characters, its aliases written out",
        ),
        ("seed: " + "9" * 5000, "it holds the number 9"),
        ("seed: 0x" + "f" * 5000, "it holds the number 0x"),
        ("seed: !!timestamp x", "it is not plain YAML"),
        ("episodes: .inf", "--episodes: must be a whole number from 1 to 10000000, got 'inf'"),
        ("n-envs: 1e99", "--n-envs: must be a whole number from 1 to 1024, got '1e99'"),
        ('init-policy: ""', "argument --init-policy is empty"),
        ('weights: "a\\0b"', "--weights holds a character that is no text: 'a\\x00b'"),
        ('protect: "\\ud800"', "--protect holds a character that is no text: '\\ud800'"),
        ('weights: "\\e[31mred"', "there is no weights file \\x1b[31mred"),
    ],
)
def test_what_a_yaml_file_may_not_hold(refused, flags, tmp_path, text, expected):
    (tmp_path / "c.yaml").write_text(text)
    line = refused("train", *flags[4:], "--model", flags[1], "--config", tmp_path / "c.yaml")
    assert expected in line
    assert len(line) < 650


def test_a_yaml_file_that_is_missing(refused, tmp_path):
    assert "cannot read" in refused("train", "--config", tmp_path / "c.yaml")


class TestPerInput:
    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (
                ["--budget", "macs=0.3..0.8"],
                "train-per-input keeps to multiply-adds on average; give one --budget",
            ),
            (
                ["--budget", "params=0.5"],
                "train-per-input keeps to multiply-adds on average; give one --budget",
            ),
            (["--budget", "macs=0.5", "params=0.5"], "train-per-input keeps to multiply-adds on average"),
            (["--budget", "latency=0.5"], "train-per-input keeps to multiply-adds on average"),
            (["--also", "cifar_resnet20=x.th"], "unknown argument --also"),
            (["--algo", "sac"], "unknown argument --algo"),
            (["--baselines", "random"], "unknown argument --baselines"),
            (["--n-envs", "2"], "unknown argument --n-envs"),
            (["--cluster"], "unknown argument --cluster"),
            (["--init-policy", "builtin"], "unknown argument --init-policy"),
            (["--score", "score.py:score"], "unknown argument --score"),
            (["--overwrite", "--plan", "out/plan.json", "--out", "out"], "/out; give another"),
            (["--first-images", "9"], "unknown argument --first-images"),
            (["--dense-reward"], "unknown argument --dense-reward"),
            (["--hyper", "tau=0.1"], "per-input has no hyper-parameter 'tau'."),
            (["--hyper", "price_rat=1"], "no hyper-parameter 'price_rat'. Did you mean 'price_rate'?"),
            (
                ["--hyper", "price_rate=-1"],
                "price_rate must be a number from 0 to 100, such as its default 0.2, got -1",
            ),
            (["--hyper", "n_epochs=0"], "per-input: n_epochs must be a whole number from 1 to 1000"),
            (["--rounds", "0"], "argument --rounds: must be a whole number from 1 to 1000, got '0'"),
            (["--tune-epochs", "-1"], "argument --tune-epochs: must be a whole number from 0 to 10000"),
            (["--static-ratio", "1.0"], "static_ratio must lie in [0, 1), got 1.0"),
            (["--static-ratio", "-0.1"], "static_ratio must lie in [0, 1), got -0.1"),
            (["--static-ratio", "nan"], "static_ratio must be a finite number, got nan"),
            (["--max-runtime-ratio", "1"], "runtime_ratio must lie in [0, 1), got 1.0"),
            (["--max-runtime-ratio", "nan"], "runtime_ratio must lie in [0, 1), got nan"),
            (["--static-ratio", "0.5", "--budget", "macs=0.9"], "the plan skips nothing at run time"),
            (["--only", "stem.*", "--only", "b.*"], "no channel group takes a runtime gate"),
            (["--plan", "nowhere.json"], "cannot read the plan nowhere.json"),
        ],
    )
    def test_wrong_words(self, refused, flags, argv, expected):
        assert expected in refused("train-per-input", *flags, *argv)

    @pytest.mark.parametrize("flag", ["--plan", "--static-ratio", "--rounds", "--tune-epochs"])
    def test_its_flags_are_unknown_to_train(self, refused, flags, flag):
        assert f"unknown argument {flag}" in refused("train", *flags, flag, "0.5" if "ratio" in flag else "1")

    @pytest.mark.parametrize(
        ("decision", "expected"),
        [
            ('"a.0": {"static_ratio": 1.0}', "static_ratio must lie in [0, 1), got 1.0"),
            (
                '"b.0": {"static_ratio": 0.5}',
                "site 'b.0' takes no static_ratio (it has no prunable channel group)",
            ),
            ('"stem.0": {"runtime_ratio": 0.5}', "'stem.0' takes no runtime_ratio"),
            ('"a.0": {"static_ratio": 0.5}', "the plan skips nothing at run time"),
            ('"a.0": {"runtime_ratio": 0.01}', "the plan skips nothing at run time"),  # of no unit
            (
                '"a.0": {"runtime_ratio": 0.96}',
                "site 'a.0': a runtime_ratio of 0.96 is above the largest, 0.9; raise --max-runtime-ratio",
            ),
        ],
    )
    def test_a_plan_that_will_not_do(self, refused, flags, tmp_path, decision, expected):
        plan = tmp_path / "plan.json"
        plan.write_text(f'{{"version": 2, "decisions": {{{decision}}}}}')
        assert expected in refused("train-per-input", *flags, "--plan", plan)

    def test_ratios_beside_a_plan(self, refused, flags, finished_run):
        argv = ["--plan", finished_run / "plan.json", "--static-ratio", "0.2"]
        assert "leave out --static-ratio" in refused("train-per-input", *flags, *argv)

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["--budget", "macs=0.01"], "macs=0.01 cannot be met by skipping: the smallest is 0."),
            (["--max-runtime-ratio", "0.1"], "with runtime ratios of 0.1 and static ratios of 0; raise one"),
            (["--max-static-ratio", "0.1"], "the smallest is 0."),  # for the row of static ratios
        ],
    )
    def test_an_impossible_budget(self, refused, flags, argv, expected):
        assert expected in refused("train-per-input", *flags, *argv, code=3)

    def test_a_budget_that_a_plan_cannot_keep(self, refused, flags, tmp_path):
        plan = tmp_path / "plan.json"
        plan.write_text('{"version": 2, "decisions": {"c.0": {"runtime_ratio": 0.5}}}')
        line = refused("train-per-input", *flags, "--plan", plan, "--budget", "macs=0.5", code=3)
        assert (
            "with runtime ratios of 0.9 at every gate of the plan; raise one of them, or the budget" in line
        )


JUNK = {  # as it stands in a file
    **{
        text: text
        for text in ("null", "true", "-1", "0.5", "1e300", "NaN", '""', "[]", "{}", '["x"]', '{"x": 1}')
    },
    "a huge number": "1" + "0" * 400,
    "a number too long to read": "1" * 5000,
    "a huge text": f'"{"x" * 10**6}"',
    "half a character": r'"\ud800"',
    "a path": '"../../../etc/passwd"',
    "deep": "[" * 300 + "]" * 300,
    "deeper": "[" * 10**5 + "]" * 10**5,
}
MARK = "to be replaced"


def places(data, place=()):
    """Yield the place of each part of nested data; of long lists, the ends alone."""
    yield place
    if isinstance(data, dict):
        parts = list(data.items())
    else:
        parts = list(enumerate(data))[:: max(1, len(data) - 1)] if isinstance(data, list) else []
    for key, part in parts:
        yield from places(part, (*place, key))


def mutated(data, place, junk):
    """Return JSON text of the data with junk in one place; without the part, where junk is None."""
    holder = data = json.loads(json.dumps({"": data}))
    *way, last = ("", *place)
    for key in way:
        holder = holder[key]
    if junk is None and place:
        del holder[last]
    else:
        holder[last] = MARK
    return json.dumps(data[""]).replace(json.dumps(MARK), junk or "")


@pytest.mark.parametrize(
    ("record", "argv"),
    [
        ("compressed/structure.json", ["evaluate", "--compressed", "RUN", "--model", "MODEL"]),
        ("compressed/structure.json", ["describe", "--compressed", "RUN", "--model", "MODEL"]),
        ("plan.json", ["prune", "FLAGS", "--plan", "RUN/plan.json"]),
        ("policy/policy.json", ["prune", "FLAGS", "--policy", "RUN/policy"]),
        ("metrics.json", ["report", "RUN"]),
        ("config.json", ["report", "RUN"]),
        ("episodes.jsonl", ["report", "RUN"]),
    ],
)
def test_a_record_with_junk_in_one_place_is_refused_in_one_line_or_fits(
    run_cli, material, flags, finished_run, tmp_path, monkeypatch, record, argv
):
    monkeypatch.setattr(prunegym.scripts.report, "run_pictures", lambda run: {})  # each takes a second
    run = shutil.copytree(finished_run, tmp_path / "run")
    whole = (run / record).read_text()
    first, *others = whole.splitlines() if record.endswith("l") else [whole]
    data = json.loads(first)
    cases = [(place, junk) for place in places(data) for junk in (None, *JUNK.values())]
    command = [part.replace("RUN", str(run)).replace("MODEL", material.model) for part in argv]
    command[1:2] = flags if command[1] == "FLAGS" else command[1:2]
    for place, junk in random.Random(0).sample(cases, 24):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (run / record).write_text("\n".join([mutated(data, place, junk), *others]))
        code, _, err = run_cli(*command)
        assert code == 0 or (code == 2 and err.startswith("prunegym: ") and err.count("\n") == 1), (
            place,
            junk,
        )
