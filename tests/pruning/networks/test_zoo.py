"""A dozen networks, one of each way to build them: traced, cut, saved and loaded."""

import pytest
import torch

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.storage.compressed import Manifest, load_compressed, save_compressed
from prunegym.pruning.surgery.cutting import cut
from tests.pruning.example_networks import randomised
from tests.pruning.oracles import counted_macs, random_kept, silenced_output
from tests.pruning.plans import ratios

pytestmark = pytest.mark.conformance

SIDE = 32
ZOO = {  # network -> (prunable groups at least, share of the MACs left at half the units of each at most)
    "cifar_vgg16_bn": (13, 0.27),
    "cifar_mobilenetv2": (25, 0.3),
    "torchvision/resnet18": (12, 0.27),
    "torchvision/mobilenet_v3_small": (25, 0.36),
    "torchvision/shufflenet_v2_x0_5": (28, 0.5),
    "torchvision/squeezenet1_1": (17, 0.32),
    "timm/densenet121": (120, 0.27),
    "timm/tf_efficientnetv2_b0": (30, 0.3),
    "timm/cs3darknet_s": (25, 0.27),
    "timm/regnety_002": (30, 0.3),
    "timm/convnext_atto": (12, 0.6),
    "timm/mobilevit_xxs": (8, 0.9),
}

# least squares on inputs by the thousand takes seconds, and says no more than on those of the others
WIDE = ("cifar_vgg16_bn", "torchvision/resnet18")


@pytest.fixture(scope="module", params=list(ZOO))
def network(request):
    """The name of a network, and what is known of it."""
    model = randomised(resolve_network(request.param).build())
    images = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    method = Method(compensation="none") if request.param in WIDE else Method()
    return request.param, PrunableNetwork(model, real_images(model, [images]), method=method)


def test_its_groups_are_found(network):
    name, found = network
    assert len(found.graph.prunable) >= ZOO[name][0]


@torch.no_grad()
def test_cutting_it_equals_silencing(network):
    _, found = network
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    kept, dense = random_kept(found.graph), found.model.double()
    try:
        small = cut(dense, found.graph, kept)(images)
        expected = silenced_output(dense, found.graph, kept, images)
    finally:
        found.model.float()
    torch.testing.assert_close(small, expected, rtol=1e-6, atol=float(expected.abs().max()) * 1e-6)


@torch.no_grad()
def test_it_is_smaller_saved_and_loaded(network, tmp_path):
    name, found = network
    (images,) = found.calibration.inputs.batches
    plan = CompressionPlan({group.name: ratios(0.5) for group in found.graph.prunable})
    compressed = found.apply(plan)
    assert counted_macs(compressed.model, images[0]) <= ZOO[name][1] * counted_macs(found.model, images[0])
    evaluation = Evaluation(accuracy=None, macs=0, params=0, bytes=0, agreement=0.0)
    manifest = Manifest(name, (3, SIDE, SIDE), (0.0,) * 3, (1.0,) * 3, "none", plan, evaluation)
    save_compressed(tmp_path / "saved", compressed, manifest)
    loaded = load_compressed(tmp_path / "saved").model
    torch.testing.assert_close(loaded(images), compressed.model.eval()(images), rtol=0, atol=0)
