"""Where steps decide."""

import pytest

from prunegym.pruning.graph import find_groups
from prunegym.pruning.graph.patterns import restrict
from prunegym.pruning.graph.sites import find_sites
from prunegym.pruning.networks.registry import resolve_network
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_every_prunable_group_and_every_layer_is_decided_once_in_execution_order(name):
    _, graph, _ = example(name)
    sites = find_sites(graph)
    assert [site.group for site in sites if site.group] == list(graph.prunable)
    assert sorted(site.layer for site in sites if site.layer) == sorted(graph.layers)
    assert len({site.name for site in sites}) == len(sites)
    order = list(graph.layers)
    begins = [order.index(site.group.layers[0] if site.group else site.layer) for site in sites]
    assert begins == sorted(begins)
    assert all(site.layer == site.group.layers[0] for site in sites if site.group and site.layer)


def test_a_resnet_20_has_twelve_sites_with_a_group_and_eight_without():
    spec = resolve_network("cifar_resnet20")
    sites = find_sites(find_groups(spec.build().eval(), spec.input_shape))
    assert sum(site.group is not None for site in sites) == 12
    alone = [site.name for site in sites if site.group is None]
    # the second convolutions of all blocks but the first of a trunk, and the classifier
    assert alone == [
        *(f"layer1.{block}.conv2" for block in range(3)),
        *(f"layer{stage}.{block}.conv2" for stage in (2, 3) for block in (1, 2)),
        "linear",
    ]


def test_a_layer_that_begins_several_groups_is_decided_at_the_first():
    _, graph, _ = example("split-apart")
    written = [group for group in graph.prunable if group.layers[0] == graph.prunable[0].layers[0]]
    assert len(written) > 1
    layers = [site.layer for site in find_sites(graph) if site.group in written]
    assert layers == [written[0].layers[0], *[None] * (len(written) - 1)]


def test_layers_that_the_user_protects_have_none():
    _, graph, _ = example("residual")
    assert [site.name for site in find_sites(graph)] == ["stem.0", "a.0", "b.0", "head.2"]
    protected = restrict(graph, protect=["b.*"])
    assert [site.name for site in find_sites(protected)] == ["stem.0", "a.0", "head.2"]
    assert find_sites(protected)[0].group is None  # b writes its channels too
    assert [site.name for site in find_sites(restrict(graph, only=["a.*"]))] == ["a.0"]
