"""What the README shows for opening a folder with torch alone, run where nothing of ours can be imported."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.storage.compressed import Manifest, save_compressed
from prunegym.pruning.storage.export import export_network
from tests.pruning.example_networks import randomised

pytestmark = pytest.mark.runs

SINGLE_PROCESS = """
import sys, warnings

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"prunegym", "pruning", "envs", "agents", "scripts", "tests"}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
"""

LOADER = '''
import json
import torch
from safetensors.torch import load_file

def open_compressed(model, folder):
    """Turn the network that was compressed, untrained, into what the folder holds."""
    records = json.load(open(f"{folder}/structure.json"))["techniques"]
    is_module = all(record.get("form", "module") == "module" for record in records.values())
    assert is_module and "gates" not in records, "use prunegym export --format pt2"
    for block in records.get("depth", {"blocks": []})["blocks"]:
        model.set_submodule(block, torch.nn.Identity())
    for name, tensor in load_file(f"{folder}/model.safetensors").items():
        layer, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if attribute == "weight" and getattr(layer, "groups", 1) == getattr(layer, "in_channels", 0) > 1:
            layer.groups = len(tensor) * layer.groups // layer.out_channels  # depthwise
        weights = attribute in layer._parameters
        setattr(layer, attribute, torch.nn.Parameter(tensor) if weights else tensor)
    return model.eval()
'''

OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.BatchNorm2d(16), nn.PReLU(16))
        self.narrow = nn.Conv2d(16, 8, 1, bias=False)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.linear((x + self.narrow(self.wide(x))).relu().mean((2, 3)))
"""

# beside a build of torch that torchvision was not compiled for, its Python half misses names of operators
TORCHVISION = """
library, missing = torch.library.Library("torchvision", "FRAGMENT"), True
while missing:
    try:
        from torchvision.models import resnet18 as make
        missing = False
    except RuntimeError as error:
        name = str(error).partition("torchvision::")[2].split()[0]
        library.define(f"{name}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
"""


def compressed(folder, name, size):
    """Compress a network to half, save it in `folder/c`; return it, and images that lie beside the folder."""
    spec = resolve_network(name, input_size=size)
    model = randomised(spec.build())
    images = torch.randn(4, *size, generator=torch.Generator().manual_seed(1))
    network = PrunableNetwork(model, real_images(model, [images]), method=Method(compensation="none"))
    plan = network.space.even_plan({"channels": 0.5})
    made = network.apply(plan)
    evaluation = Evaluation(None, 1, 1, 1, agreement=1.0)
    manifest = Manifest(name, size, spec.mean, spec.std, "none", plan, evaluation)
    save_compressed(folder / "c", made, manifest)
    with torch.no_grad():
        save_file({"images": images, "logits": made.model.eval()(images)}, folder / "case.safetensors")
    return made, images


def run_alone(folder, program):
    check = """
case = load_file("case.safetensors")
with torch.no_grad():
    torch.testing.assert_close(model(case["images"]), case["logits"], rtol=1e-4, atol=1e-4)
"""
    command = [sys.executable, "-c", SINGLE_PROCESS + LOADER + program + check]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("network", ["own", "torchvision"])
def test_the_users_network_takes_the_weights(tmp_path, network):
    if network == "own":
        (tmp_path / "net.py").write_text(OWN)
        name, make = f"{tmp_path / 'net.py'}:Net", "sys.path.insert(0, '.')\nfrom net import Net as make\n"
    else:
        name, make = "torchvision/resnet18", TORCHVISION
    made, _ = compressed(tmp_path, name, (3, 32, 32))
    assert made.records["channels"]["form"] == "module"
    run_alone(tmp_path, make + "model = open_compressed(make(), 'c')\n")


def test_the_form_graph_opens_from_its_export(tmp_path):
    made, images = compressed(tmp_path, "cifar_resnet20", (3, 32, 32))
    assert made.records["channels"]["form"] == "graph"
    export_network(made.model, {"pt2": tmp_path / "model.pt2"}, images, metadata={})
    program = "warnings.simplefilter('ignore')\nmodel = torch.export.load('model.pt2').module()\n"
    run_alone(tmp_path, program)


def test_nothing_of_ours_was_at_hand(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SINGLE_PROCESS + "import prunegym"], capture_output=True, check=False
    )
    assert b"ImportError: prunegym" in done.stderr
