import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from prunegym.pruning.errors import PruningError, UnknownNameError
from prunegym.pruning.networks.registry import NETWORKS, NetworkSpec, resolve_network
from prunegym.pruning.networks.resnets import PaddedShortcut
from prunegym.pruning.networks.weights import load_weights_


def refusal(spec, **given):
    with pytest.raises(PruningError) as caught:
        resolve_network(spec, **given).build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def factory_file(folder, text, name="net.py"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", list(NETWORKS))
class TestEveryNetwork:
    def test_turns_images_of_its_size_into_ten_logits(self, name):
        network = resolve_network(name)
        model = network.build().eval()
        assert model(torch.zeros(2, *network.input_shape)).shape == (2, 10)
        assert network.name == name

    def test_is_drawn_anew_at_each_build(self, name):
        network = resolve_network(name)
        first, second = network.build(), network.build()
        pair = zip(first.parameters(), second.parameters(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pair)

    def test_can_be_traced(self, name):
        torch.fx.symbolic_trace(resolve_network(name).build())


@pytest.mark.parametrize(
    ("name", "millions"), [("20", 0.27), ("32", 0.46), ("44", 0.66), ("56", 0.85), ("110", 1.7)]
)
def test_cifar_resnets_have_the_sizes_of_the_paper(name, millions):
    model = resolve_network(f"cifar_resnet{name}").build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05 if name == "110" else 0.01
    )


def test_vgg16_is_as_large_as_counted_by_hand():
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    layers = sum(9 * cin * cout + 3 * cout for cin, cout in pairwise(widths))  # bias, scale and shift
    model = resolve_network("cifar_vgg16_bn").build()
    assert sum(p.numel() for p in model.parameters()) == layers + 512 * 10 + 10


def test_mobilenetv2_is_torchvisions_with_ten_classes():
    theirs = resolve_network("torchvision/mobilenet_v2").build()
    ours = resolve_network("cifar_mobilenetv2").build()

    def sizes(model):
        return [tuple(p.shape) for p in model.parameters()][:-2]  # but for the classes

    assert sizes(ours) == sizes(theirs)
    assert ours.classifier.weight.shape == (10, 1280)
    with torch.no_grad():
        assert ours.eval().features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)


def test_a_padded_shortcut_by_hand():
    image = torch.arange(8.0).view(1, 2, 2, 2)
    # every second pixel of each channel (0 and 4), one channel of zeros before and one after
    assert PaddedShortcut(2, 4)(image).flatten().tolist() == [0.0, 0.0, 4.0, 0.0]


def test_published_weights_reach_their_published_accuracy_on_known_images(data_file):
    network = resolve_network("cifar_resnet20")
    model = network.build().eval()
    load_weights_(model, data_file("weights/resnet20-12fca82f.th"))
    with np.load(data_file("cifar10/cifar10_subset.npz")) as archive:
        images = torch.from_numpy(archive["test_images"][:200]).permute(0, 3, 1, 2) / 255
        labels = torch.from_numpy(archive["test_labels"][:200])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        right = model((images - mean[:, None, None]) / std[:, None, None]).argmax(1) == labels
    assert right.float().mean() > 0.87


def test_the_digits_network_is_as_large_as_counted_by_hand():
    model = resolve_network("digits_resnet").build()
    convolutions = (
        9 * (1 * 16 + 4 * 16 * 16 + 16 * 24 + 3 * 24 * 24 + 24 * 40 + 3 * 40 * 40) + 16 * 24 + 24 * 40
    )
    norms = 2 * (5 * 16 + 5 * 24 + 5 * 40)
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + 40 * 10 + 10


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar_resnet56'"):
        resolve_network("cifar_resnet65")


def test_what_is_given_replaces_what_the_network_says():
    network = resolve_network("cifar_resnet20", input_size=(3, 64, 48), mean=[0.1, 0.2, 0.3], std=[1, 2, 3])
    assert network.input_shape == (3, 64, 48)
    assert (network.mean, network.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": [0.5]}, r"mean and std need one number per input channel \(3\), got 1 and 3"),
        ({"std": [1.0, 0.0, 1.0]}, r"a standard deviation must lie in \[1e-06, 1e\+06\]"),
        ({"mean": [float("nan")] * 3}, "must lie within 1e"),
        ({"input_size": (3, 0, 32)}, "three positive numbers"),
    ],
)
def test_nonsense_preprocessing_is_refused(given, words):
    with pytest.raises(PruningError, match=words):
        resolve_network("cifar_resnet20", **given)


LAYERS = "from torch import nn\nmake = "


class TestNetworksFromAFile:
    def test_are_built_with_plain_preprocessing(self, tmp_path):
        factory_file(tmp_path, "from torch import nn\nWIDTH = 7\n", "neighbour_of_net.py")
        path = factory_file(
            tmp_path,
            "from neighbour_of_net import WIDTH, nn\ndef make():\n    return nn.Conv2d(2, WIDTH, 1)\n",
        )
        network = resolve_network(f"{path}:make", input_size=(2, 5, 5))
        assert network.build().out_channels == 7
        assert (network.mean, network.std, network.input_shape) == ((0.0, 0.0), (1.0, 1.0), (2, 5, 5))

    @pytest.fixture(autouse=True)
    def _import_state(self, monkeypatch):
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def test_may_define_dataclasses(self, tmp_path):
        text = (
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "from typing import ClassVar\nfrom torch import nn\n"
            "@dataclass\nclass Config:\n    width: ClassVar[int] = 7\n"
            "def make():\n    return nn.Conv2d(1, Config.width, 1)\n"
        )
        network = resolve_network(f"{factory_file(tmp_path, text)}:make", input_size=(1, 5, 5))
        assert network.build().out_channels == 7

    def test_need_an_input_size(self, tmp_path):
        path = factory_file(tmp_path, "from torch import nn\nmake = nn.Identity\n")
        assert "needs its input size" in refusal(f"{path}:make")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("def other(): pass", "defines no callable 'make'"),
            ("def make(): raise ValueError('two\\nlines')", "the factory raised ValueError: two lines"),
            ("def make(width): pass", "the factory raised TypeError"),
            ("def make(): return 3", "must return a torch.nn.Module, got int"),
            ("import no_such_package_at_all", "cannot be executed: ModuleNotFoundError"),
            ("raise SystemExit(3)", "cannot be executed: SystemExit"),
            ("def make(:", "cannot be executed: SyntaxError"),
            (
                f"{LAYERS}lambda: nn.Linear(2, 2, device='meta')",
                "weight is on the meta device and has no values",
            ),
            (f"{LAYERS}lambda: nn.BatchNorm1d(2, affine=False, device='meta')", "is on the meta device"),
            (f"{LAYERS}lambda: nn.LazyLinear(2)", "the size of weight is not known yet"),
            (f"{LAYERS}nn.Flatten", "Flatten has no parameters"),
        ],
    )
    def test_that_do_not_work_are_refused_in_one_line(self, tmp_path, text, words):
        path = factory_file(tmp_path, text)
        assert words in refusal(f"{path}:make", input_size=(1, 4, 4))

    def test_that_do_not_exist_are_refused(self, tmp_path):
        assert "there is no file" in refusal(f"{tmp_path}/no.py:make", input_size=(1, 4, 4))


class TestTorchvision:
    def test_preprocessing_comes_from_the_default_weights(self):
        network = resolve_network("torchvision/inception_v3")
        assert network.input_shape == (3, 299, 299)
        assert (network.mean, network.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def test_weights_are_drawn_not_downloaded(self):
        network = resolve_network("torchvision/squeezenet1_1")
        first, second = network.build(), network.build()
        assert not torch.equal(first.features[0].weight, second.features[0].weight)

    def test_an_unknown_name_suggests_the_nearest(self):
        with pytest.raises(UnknownNameError, match=r"Did you mean .*'resnet18'"):
            resolve_network("torchvision/resnet19")


class TestTimm:
    def test_preprocessing_comes_from_its_data_config(self):
        network = resolve_network("timm/test_resnet")
        assert network.input_shape == (3, 160, 160)
        assert network.build().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)

    def test_weights_are_drawn_not_downloaded(self):
        network = resolve_network("timm/test_resnet.r160_in1k")
        first, second = network.build(), network.build()
        assert not torch.equal(first.conv1[0].weight, second.conv1[0].weight)

    @pytest.mark.parametrize(("name", "near"), [("resnet51", "resnet50"), ("resnet50.typo", "resnet50.")])
    def test_an_unknown_name_suggests_the_nearest(self, name, near):
        with pytest.raises(UnknownNameError, match=f"Did you mean .*'{near}"):
            resolve_network(f"timm/{name}")


IMAGENET = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class TestTransform:
    """What image files go through is the weights' own, as long as nothing else is asked for."""

    @pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18.a1_in1k"])
    def test_what_is_already_so_changes_nothing(self, name):
        assert resolve_network(name).transform is not None
        assert resolve_network(name, **IMAGENET).transform is not None

    @pytest.mark.parametrize(
        "other", [{"input_size": (3, 160, 160)}, {"mean": (0.5, 0.5, 0.5)}, {"std": (1.0, 1.0, 1.0)}]
    )
    def test_other_preprocessing_leads_to_the_generic_one(self, other):
        assert resolve_network("torchvision/resnet18", **IMAGENET | other).transform is None


def test_a_specification_is_checked_when_it_is_made():
    with pytest.raises(PruningError, match="one number per input channel"):
        NetworkSpec(name="odd", build=nn.Identity, input_shape=(1, 2, 2), mean=(), std=(1.0,))


OBJECTS = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

def half():
    return plain().half()

def bfloat16():
    return plain().bfloat16()

def compiled():
    return torch.compile(plain())

def parallel():
    return nn.DataParallel(torch.compile(plain()))

def inference():
    with torch.inference_mode():
        return plain()

def scripted():
    return torch.jit.trace(plain().eval(), torch.zeros(1, 3, 2, 2))
"""


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own
class TestWhatFactoriesReturn:
    def build(self, folder, name):
        (folder / "net.py").write_text(OBJECTS)
        return resolve_network(f"{folder / 'net.py'}:{name}", input_size=(3, 2, 2)).build()

    @pytest.mark.parametrize("name", ["half", "bfloat16", "compiled", "parallel", "inference"])
    def test_is_taken_for_the_plain_module_in_it(self, tmp_path, name, caplog):
        model = self.build(tmp_path, name)
        assert type(model) is nn.Sequential
        model(torch.ones(2, 3, 2, 2)).sum().backward()
        with torch.no_grad():
            model[1].weight.mul_(2)
        assert model[1].weight.grad.dtype == torch.float32
        noted = any("is in half precision" in message for message in caplog.messages)
        assert noted == (name in ("half", "bfloat16"))

    def test_torch_script_is_refused(self, tmp_path):
        with pytest.raises(PruningError, match="the network is TorchScript"):
            self.build(tmp_path, "scripted")
