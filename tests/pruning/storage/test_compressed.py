import copy
import hashlib
import json
import math
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.errors import PruningError
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.per_input import find_per_input_policy
from prunegym.pruning.runtime.slicing import deployed
from prunegym.pruning.storage.compressed import (
    Manifest,
    load_compressed,
    save_compressed,
)
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import counted_params
from tests.pruning.plans import ratios
from tests.pruning.runtime.test_per_input import telling_apart


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    """A user's file with a factory for every example: the name of the example, `-` written as `_`."""
    lines = ["from tests.pruning.example_networks import EXAMPLES", ""]
    lines += [f"{name.replace('-', '_')} = EXAMPLES[{name!r}].build" for name in EXAMPLES]
    path = tmp_path_factory.mktemp("user") / "nets.py"
    path.write_text("\n".join(lines))
    return path


def saved(folder, network_file, name, static=0.5, runtime=0.0, hidden=None):
    """Compress an example evenly, save it, and return (what was saved, the name to load it by)."""
    chosen = EXAMPLES[name]
    model = chosen.model()
    network = PrunableNetwork(model, real_images(model, [chosen.images(8)]))
    plan = CompressionPlan(
        {g.name: ratios(static, 0.0 if g.ungated else runtime) for g in network.graph.prunable}
    )
    compressed = network.apply(plan)
    if hidden is not None:
        with torch.no_grad():
            telling_apart(compressed.model, chosen.images(8), hidden)
    spec = f"{network_file}:{name.replace('-', '_')}"
    channels = chosen.input_shape[0]
    manifest = Manifest(
        network=spec,
        input_shape=chosen.input_shape,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        data="digits",
        plan=plan,
        evaluation=Evaluation(0.5, 10, counted_params(compressed.model), 30, 0.1),
    )
    save_compressed(folder, compressed, manifest)
    return compressed, manifest


@pytest.mark.parametrize("runtime", [0.0, 0.4])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("residual", "module"),
        ("padded", "graph"),
        ("shuffled-constants", "graph"),
        ("view-constant", "graph"),
        ("slices", "graph"),
        ("unused-head", "graph"),
        ("concat", "module"),
        ("grouped", "module"),
        ("depthwise", "module"),
        ("layer-scale", "module"),
        ("bias-free", "module"),
    ],
)
def test_what_is_loaded_gives_the_same_output_bit_for_bit(tmp_path, network_file, name, form, runtime):
    compressed, manifest = saved(tmp_path / "c", network_file, name, runtime=runtime)
    assert compressed.records["channels"]["form"] == form
    loaded = load_compressed(str(tmp_path / "c"), network=manifest.network)
    images = EXAMPLES[name].images(5)
    with torch.no_grad():
        expected = compressed.model.eval()(images)
        assert torch.equal(loaded.model(images), expected)
    assert loaded.manifest == manifest
    assert loaded.gates == compressed.gates
    assert not loaded.model.training
    assert list(loaded.model.state_dict()) == list(compressed.model.state_dict())


def test_gates_and_gained_biases_are_among_what_is_saved(tmp_path, network_file):
    compressed, _ = saved(tmp_path / "c", network_file, "bias-free", runtime=0.4)
    assert compressed.gates
    assert compressed.biases
    record = json.loads((tmp_path / "c" / "structure.json").read_text())
    assert len(record["techniques"]["gates"]["sites"]) == len(compressed.gates)
    assert record["biases"] == list(compressed.biases)


@pytest.mark.parametrize("hidden", [(8,), (5, 3)])
@pytest.mark.parametrize("name", ["residual", "padded", "depthwise"])
def test_a_policy_of_its_inputs_travels_along(tmp_path, network_file, name, hidden):
    compressed, manifest = saved(tmp_path / "c", network_file, name, 0.2, 0.4, hidden)
    loaded = load_compressed(tmp_path / "c", network=manifest.network)
    images, shape = EXAMPLES[name].images(8), EXAMPLES[name].input_shape
    ratios, again = (find_per_input_policy(gates_of(one.model)) for one in (compressed, loaded))
    with torch.no_grad():
        expected = compressed.model.eval()(images)
        assert torch.equal(loaded.model(images), expected)
        assert torch.equal(torch.stack(again.decided), torch.stack(ratios.decided))
        assert len(torch.stack(again.decided, dim=1).unique(dim=0)) > 1
        sliced = deployed(loaded.model, shape)(images)
        assert torch.equal(sliced, deployed(compressed.model, shape)(images))
        torch.testing.assert_close(sliced, expected, rtol=1e-4, atol=1e-4)
    assert again.hidden == hidden
    assert list(loaded.model.state_dict()) == list(compressed.model.state_dict())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_network_without_a_policy_says_so(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual", runtime=0.4)
    assert (
        json.loads((tmp_path / "c" / "structure.json").read_text())["techniques"]["gates"]["per_input"]
        is None
    )
    assert (
        find_per_input_policy(gates_of(load_compressed(tmp_path / "c", network=manifest.network).model))
        is None
    )


def test_a_policy_needs_no_agent_to_run(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual", runtime=0.4, hidden=(8,))
    program = f"""
import sys, torch
from pathlib import Path
from prunegym.pruning.storage.compressed import load_compressed
from prunegym.pruning.runtime.slicing import deployed
model = load_compressed(Path({str(tmp_path / "c")!r}), network={manifest.network!r}).model
images = torch.zeros(2, *{manifest.input_shape})
with torch.no_grad():
    model(images), deployed(model, images.shape[1:])(images)
others = {{"stable_baselines3", "tensorboard", "prunegym.envs", "prunegym.agents", "prunegym.scripts"}}
print(sorted(others & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        {},
        [],
        7,
        "hidden",
        {"hidden": None},
        {"hidden": 8},
        {"hidden": "8"},
        {"hidden": [8.0]},
        {"hidden": [-8]},
        {"hidden": [[8]]},
        {"hidden": [10**300]},
        {"hidden": [10**9, 10**9]},
    ],
)
def test_a_damaged_policy_is_refused_on_one_line(tmp_path, network_file, damage):
    _, manifest = saved(tmp_path / "c", network_file, "residual", runtime=0.4, hidden=(8,))
    alter_technique(tmp_path / "c", "gates", per_input=damage)
    with pytest.raises(
        PruningError, match=r"structure\.json is damaged \(.*\); write the folder anew$"
    ) as caught:
        load_compressed(tmp_path / "c", network=manifest.network)
    assert "\n" not in str(caught.value)


def test_a_record_without_the_entry_is_refused(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual", runtime=0.4)
    path = tmp_path / "c" / "structure.json"
    record = json.loads(path.read_text())
    del record["techniques"]["gates"]["per_input"]
    path.write_text(json.dumps(record))
    with pytest.raises(PruningError, match=r"damaged \(KeyError: 'per_input'\)"):
        load_compressed(tmp_path / "c", network=manifest.network)


@pytest.mark.parametrize("declared", [None, {"hidden": []}, {"hidden": [7]}, {"hidden": [8, 8]}])
def test_a_policy_of_another_shape_than_its_weights_is_refused(tmp_path, network_file, declared):
    _, manifest = saved(tmp_path / "c", network_file, "residual", runtime=0.4, hidden=(8,))
    if declared is not None:
        record = json.loads((tmp_path / "c" / "structure.json").read_text())
        declared = {**record["techniques"]["gates"]["per_input"], **declared}
    alter_technique(tmp_path / "c", "gates", per_input=declared)
    with pytest.raises(PruningError, match="does not fit the network"):
        load_compressed(tmp_path / "c", network=manifest.network)


@pytest.fixture(scope="module")
def gated_folder(tmp_path_factory, network_file):
    """A network that decides for each input, and the name to load it by; not to be changed."""
    folder = tmp_path_factory.mktemp("gated") / "c"
    _, manifest = saved(folder, network_file, "residual", runtime=0.4, hidden=(8,))
    return folder, manifest.network


def changed(data, path, value):
    """Return a copy of nested data with another value at a path, or with an entry more."""
    if not path:
        return value
    first, *rest = path
    entries = list(data) if isinstance(data, list) else dict(data)
    entries[first] = changed(entries[first], rest, value) if rest or isinstance(data, list) else value
    return entries


SITE = ("techniques", "gates", "sites", 0)
CUT = ("techniques", "channels", "cuts", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[
            ((*SITE, "outputs", "a.0", 1), value)
            for value in (0, -1, 10**9, 2**31, 10**400, 1e300, 0.5, "x", [1])
        ],
        *[((*SITE, "outputs", "a.0"), value) for value in ([], "x", {}, [0])],
        *[((*SITE, "outputs", "a.1"), value) for value in ([1], ["x"], {"x": 1})],
        ((*SITE, "outputs"), {}),
        *[((*SITE, "units"), value) for value in (2**31, 2**40, 10**400, True, 0.5)],
        *[((*SITE, "executed"), value) for value in (0, True, 0.5, 10**9)],
        *[((*SITE, "inputs"), value) for value in (0, True, 10**9)],
        *[((*CUT, "kept", 0), value) for value in (-1, True, 0.5, 10**9)],
        *[((*CUT, "axis"), value) for value in (True, "inside", None)],
        *[((*CUT, "dim"), value) for value in (1, -1, [1])],
        *[(("techniques", "channels", "form"), value) for value in ("graph ", {}, 2**40)],
        *[(("techniques", "channels", "constants"), value) for value in ([1], 0.5, {"x": "y"})],
        *[(("techniques", "gates", "per_input", "largest"), value) for value in (-1, 1.0, "x", None)],
        *[(("techniques", "gates", "per_input", "hidden"), value) for value in (8, [0], [8.0], "x")],
        *[(("techniques", "gates", "per_input", "prices", "dense"), value) for value in (0, 2**63, 0.5)],
        (("techniques", "gates", "per_input", "prices", "gated", "coefficient"), [1.0] * 9),
        (("techniques", "gates", "per_input", "prices", "gated", "slopes"), [[[1.0] * 9]]),
        *[(("plan", "a.0", "static_ratio"), value) for value in (-0.5, 1000)],
        (("plan", "a.0", "unknown"), 0.5),
        *[(("evaluation", "accuracy"), value) for value in (True, 2, -1, "x")],
        *[(("evaluation", "macs"), value) for value in (None, 0.5, -1, "x", [1])],
        *[(("mean", 0), value) for value in (2**63, 1e300, "x", None, True)],
        *[(("std", 0), value) for value in (0, 1e300, "x")],
        *[(("network",), value) for value in (None, {}, 1)],
        *[(("data",), value) for value in (None, {}, 1)],
        *[(("version",), value) for value in (4.0, True, "4")],
        (("comment",), "mine"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(gated_folder, tmp_path, path, value):
    folder, network = gated_folder
    shutil.copytree(folder, tmp_path / "c")
    record = json.loads((folder / "structure.json").read_text())
    (tmp_path / "c" / "structure.json").write_text(json.dumps(changed(record, path, value)))
    with pytest.raises(PruningError, match=r"structure\.json|network '|plan|site '"):
        load_compressed(tmp_path / "c", network=network)


def test_what_a_record_asks_for_is_not_allocated_before_it_is_refused(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual", runtime=0.4, hidden=(8,))
    gates = json.loads((tmp_path / "c" / "structure.json").read_text())["techniques"]["gates"]
    huge = [
        {"per_input": {**gates["per_input"], "hidden": [10**7]}},  # 0.6 GB of weights
        *[
            {"sites": [{**site, name: 10**8} for site in gates["sites"]]}
            for name in ("inputs", "units", "executed")
        ],
    ]
    before = peak_memory()
    for change in huge:
        alter_technique(tmp_path / "c", "gates", **{**gates, **change})
        with pytest.raises(
            PruningError, match=r"its gates have \d+ entries|does not fit a\.0|cannot run|all its"
        ):
            load_compressed(tmp_path / "c", network=manifest.network)
    assert peak_memory() - before < 100 * 2**20


def test_a_record_that_makes_a_network_which_does_not_run_is_refused(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "padded", runtime=0.4)
    records = json.loads((tmp_path / "c" / "structure.json").read_text())["techniques"]
    pads = {name: value + 1 for name, value in records["channels"]["constants"].items()}
    assert pads
    damaged = {
        "channels": {**records["channels"], "constants": pads},
        "gates": {
            **records["gates"],
            "sites": [{**site, "executed": site["units"] + 1} for site in records["gates"]["sites"]],
        },
    }
    for key, value in damaged.items():
        alter(tmp_path / "c", techniques={**records, key: value})
        with pytest.raises(PruningError, match=r"structure\.json is damaged \((Runtime|Value)Error: "):
            load_compressed(tmp_path / "c", network=manifest.network)


@pytest.mark.parametrize("name", ["residual", "padded"])
def test_a_huge_image_is_refused_before_there_is_one(tmp_path, network_file, name):
    _, manifest = saved(tmp_path / "c", network_file, name)
    channels = manifest.input_shape[0]
    before = peak_memory()
    for side in (10**4, 10**12):
        alter(tmp_path / "c", input_shape=[channels, side, side])
        with pytest.raises(PruningError, match=r"is damaged \(ValueError: images of shape "):
            load_compressed(tmp_path / "c", network=manifest.network)
    assert peak_memory() - before < 100 * 2**20


def peak_memory():
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_nothing_but_tensors_and_json_is_written(tmp_path, network_file):
    saved(tmp_path / "c", network_file, "residual")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["model.safetensors", "structure.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_strangers_file_is_run_only_if_it_is_named(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual")
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    alter(tmp_path / "c", network=f"{hostile}:net")
    with pytest.raises(PruningError, match="is not run unasked: name it with --model"):
        load_compressed(tmp_path / "c")
    load_compressed(tmp_path / "c", network=manifest.network)
    assert not (tmp_path / "run").exists()


def alter(folder, **changed):
    path = folder / "structure.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def alter_technique(folder, technique, **changed):
    records = json.loads((folder / "structure.json").read_text())["techniques"]
    alter(folder, techniques={**records, technique: {**records[technique], **changed}})


def test_a_technique_that_this_release_does_not_know_is_refused(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual")
    alter(tmp_path / "c", techniques={"channelss": {}})
    with pytest.raises(PruningError, match=r"no technique named 'channelss'. Did you mean 'channels'"):
        load_compressed(tmp_path / "c", network=manifest.network)


def test_another_version_is_refused(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual")
    for version in (0, 3, "4", None):
        alter(tmp_path / "c", version=version)
        with pytest.raises(PruningError, match="not a compressed network of version 4"):
            load_compressed(tmp_path / "c", network=manifest.network)


def test_weights_of_another_folder_are_refused(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual")
    saved(tmp_path / "other", network_file, "residual", static=0.25)
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "c" / "model.safetensors")
    with pytest.raises(PruningError, match=r"is not the file that structure\.json describes"):
        load_compressed(tmp_path / "c", network=manifest.network)


def test_weights_that_do_not_fit_the_structure_are_refused(tmp_path, network_file):
    _, manifest = saved(tmp_path / "c", network_file, "residual")
    saved(tmp_path / "other", network_file, "residual", static=0.25)
    weights = tmp_path / "c" / "model.safetensors"
    (tmp_path / "other" / "model.safetensors").rename(weights)
    alter(tmp_path / "c", weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(PruningError, match="does not fit the network"):
        load_compressed(tmp_path / "c", network=manifest.network)


def test_another_network_is_refused(tmp_path, network_file):
    saved(tmp_path / "c", network_file, "residual")
    with pytest.raises(PruningError, match="does not fit"):
        load_compressed(tmp_path / "c", network=f"{network_file}:concat")


@pytest.mark.parametrize("missing", ["structure.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, network_file, missing):
    _, manifest = saved(tmp_path / "c", network_file, "residual")
    (tmp_path / "c" / missing).unlink()
    with pytest.raises(PruningError, match=missing):
        load_compressed(tmp_path / "c", network=manifest.network)


@pytest.fixture(scope="module", params=[("residual", None), ("padded", None), ("padded", (8,))])
def whole(request, tmp_path_factory, network_file):
    """A folder with gates, its record, and the name to load it by."""
    folder: Path = tmp_path_factory.mktemp("fuzz") / "c"
    name, hidden = request.param
    _, manifest = saved(folder, network_file, name, runtime=0.4, hidden=hidden)
    return folder, json.loads((folder / "structure.json").read_text()), manifest.network


def places(value, path=()):
    """Every place in a JSON value, the first few of a list."""
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    )
    for key, child in inner:
        yield (*path, key)
        yield from places(child, (*path, key))


JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        3,
        10**400,
        0.5,
        math.inf,
        "",
        "conv1",
        "x.y",
        [],
        [0],
        [-1],
        ["a"],
        {},
        {"a": 1},
        [[0]],
    ]
)


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_structure_is_refused_by_name_or_loads(whole, data):
    folder, record, name = whole
    *way, last = data.draw(st.sampled_from(sorted(places(record), key=str)))
    damaged = copy.deepcopy(record)
    holder = damaged
    for key in way:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(JUNK)
    (folder / "structure.json").write_text(json.dumps(damaged))
    with suppress(PruningError):
        load_compressed(folder, network=name)
