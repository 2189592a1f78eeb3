import copy
import math
import pickle

import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.data import Images, load_splits
from prunegym.pruning.errors import PruningError, UnknownNameError
from prunegym.pruning.files.state import read_state, write_state
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, as_key, attach_gates_, gates_of
from prunegym.pruning.training.batch_norms import reestimate_
from prunegym.pruning.training.dense import train_dense
from prunegym.pruning.training.finetuning import (
    FinetuningConfig,
    RunControl,
    finetune_,
    softened_divergence,
    trained_parameters,
)
from prunegym.pruning.training.loop import TrainingConfig
from tests.pruning.oracles import assert_untouched, snapshot
from tests.pruning.plans import ratios
from tests.pruning.runtime.test_per_input import telling_apart


@pytest.fixture(scope="module")
def splits():
    return load_splits("digits", resolve_network("digits_resnet"))


@pytest.fixture(scope="module")
def teacher(splits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resolve_network("digits_resnet").build()
    return train_dense(model, splits.train, TrainingConfig(3, learning_rate=0.1, batch_size=32))


@pytest.fixture(scope="module")
def compressed(teacher, splits):
    """Carry out the same ratios for every group that takes them."""
    network = PrunableNetwork(teacher, real_images(teacher, [splits.calibration.images]))

    def compress(static, runtime=0.0):
        groups = network.graph.prunable
        plan = {group.name: ratios(static, 0.0 if group.ungated else runtime) for group in groups}
        return network.apply(CompressionPlan(plan)).model

    return compress


def few(images, count=96):
    return Images(images.images[:count], images.labels[:count])


def changed(model, before):
    """The names of all tensors that are not bit-equal to what they were."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@torch.no_grad()
def mean_divergence(model, teacher, images):
    wanted, found = (torch.softmax(one(images.images).double(), dim=1) for one in (teacher, model))
    return float((wanted * (wanted / found).log()).sum(1).mean())


@torch.no_grad()
def right(model, images):
    return float((model(images.images).argmax(1) == images.labels).float().mean())


@pytest.mark.parametrize(("static", "runtime"), [(0.7, 0.0), (0.0, 0.5)])
def test_distillation_comes_closer_to_the_teacher_on_images_held_out(
    compressed, teacher, splits, static, runtime
):
    model = compressed(static, runtime)
    before, untouched = mean_divergence(model, teacher, splits.test), snapshot(teacher)
    epochs = finetune_(model, splits.train, FinetuningConfig(epochs=3), teacher=teacher)
    assert mean_divergence(model, teacher, splits.test) < 0.6 * before
    assert epochs[-1].loss < epochs[0].loss
    assert_untouched(teacher, untouched)


def test_distillation_takes_no_notice_of_labels(compressed, teacher, splits):
    images = few(splits.train)
    first, second = compressed(0.5), compressed(0.5)
    finetune_(first, images, FinetuningConfig(epochs=1), teacher=teacher)
    finetune_(second, Images(images.images, 0 * images.labels), FinetuningConfig(epochs=1), teacher=teacher)
    assert changed(first, second.state_dict()) == set()


def test_without_a_teacher_the_labels_are_learned(compressed, splits):
    swapped = Images(splits.train.images, 9 - splits.train.labels)
    model = compressed(0.5)
    assert right(model, swapped) < 0.3
    finetune_(model, swapped, FinetuningConfig(epochs=8, learning_rate=0.03))
    assert right(model, swapped) > 0.8


def test_the_softened_divergence_by_hand():
    logits, wanted = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([[2.0, 0.0], [3.0, 1.0]])
    high = math.e / (math.e + 1)  # at temperature 2; the second image is matched
    expected = 4 * (high * math.log(high / 0.5) + (1 - high) * math.log((1 - high) / 0.5)) / 2
    assert softened_divergence(logits, wanted).item() == pytest.approx(expected, rel=1e-5)


def test_training_the_gates_changes_only_them(compressed, splits):
    model = compressed(0.0, 0.5)
    before, takes = snapshot(model), [one.requires_grad for one in model.parameters()]
    with_gradient = []

    def note(epoch):
        with_gradient.extend(name for name, one in model.named_parameters() if one.grad is not None)

    finetune_(
        model, few(splits.train), FinetuningConfig(part="gates", epochs=1), control=RunControl(on_epoch=note)
    )
    touched = changed(model, before)
    assert all(name.startswith("runtime_gates.") for name in with_gradient)
    assert touched
    assert all(name.startswith("runtime_gates.") for name in touched)
    assert {name.rpartition(".")[2] for name in touched} >= {"weight", "bias"}
    assert [one.requires_grad for one in model.parameters()] == takes
    assert all(one.grad is None for one in model.parameters())


def test_training_all_changes_all_but_the_statistics(compressed, splits):
    model = compressed(0.3, 0.5)
    before = snapshot(model)
    finetune_(model, few(splits.train), FinetuningConfig(epochs=1))
    statistics = {name for name, _ in model.named_buffers()}
    assert statistics
    assert changed(model, before) == set(before) - statistics


def test_statistics_follow_the_batches_where_they_are_trained(compressed, splits):
    model = compressed(0.3)
    before = snapshot(model)
    finetune_(model, few(splits.train), FinetuningConfig(epochs=1, batch_norms="trained"))
    statistics = {name for name, _ in model.named_buffers()}
    assert changed(model, before) == set(before)
    assert any(name.endswith("running_var") for name in statistics)


def test_statistics_are_reestimated_before_the_first_step_and_then_kept(compressed, splits):
    model, expected = compressed(0.3, 0.5), compressed(0.3, 0.5)
    images, state = few(splits.train), []
    reestimate_(expected, images)
    finetune_(
        model,
        images,
        FinetuningConfig(epochs=2, batch_norms="reestimated"),
        control=RunControl(on_epoch=lambda _: state.append(snapshot(model))),
    )
    for name, tensor in expected.named_buffers():
        assert torch.equal(state[0][name], tensor)
        assert torch.equal(state[1][name], tensor)


def test_images_held_out_are_looked_at_after_each_epoch(compressed, splits):
    model, seen = compressed(0.7), []
    epochs = finetune_(
        model,
        few(splits.train),
        FinetuningConfig(epochs=2),
        validation=splits.validation,
        control=RunControl(
            on_epoch=lambda epoch: seen.append((epoch, right(copy.deepcopy(model).eval(), splits.validation)))
        ),
    )
    assert [epoch.accuracy for epoch in epochs] == pytest.approx([accuracy for _, accuracy in seen])
    unseen = compressed(0.7)
    epochs = finetune_(unseen, few(splits.train), FinetuningConfig(epochs=2))
    assert [epoch.accuracy for epoch in epochs] == [None, None]
    assert changed(unseen, model.state_dict()) == set()


@pytest.mark.parametrize("how", [{"optimizer": "adamw"}, {"precision": "bfloat16"}])
def test_it_comes_closer_to_its_teacher_in_other_ways_too(compressed, teacher, splits, how):
    model = compressed(0.3, 0.4)
    before = mean_divergence(model, teacher, splits.test)
    finetune_(model, splits.train, FinetuningConfig(epochs=3, **how), teacher=teacher)
    assert mean_divergence(model, teacher, splits.test) < 0.7 * before
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}


def gated_by_hand():
    """Two units, one per class, of which the gate runs the first whatever the image."""
    writer, reader = (nn.Conv2d(2, 2, 1, bias=False) for _ in range(2))
    model = nn.Sequential(writer, reader, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    site = GateSite(group="0", writer="0", inputs=2, units=2, executed=1, outputs={}, readers={"1": (0, 1)})
    attach_gates_(model, RuntimeGates((site,)))
    with torch.no_grad():
        for layer in (writer, reader):
            layer.weight.copy_(torch.eye(2)[..., None, None])
        gates_of(model).gate_for("0").bias.copy_(torch.tensor([0.1, 0.0]))
    return model.eval()


def test_a_gate_learns_to_choose_by_the_image():
    labels = torch.arange(32) % 2
    images = Images(2 * torch.eye(2)[labels][..., None, None].expand(-1, -1, 3, 3).contiguous(), labels)
    model = gated_by_hand()
    gate = gates_of(model).gate_for("0")
    pooled = images.images.mean((2, 3))
    with torch.no_grad():
        assert torch.equal(gate(pooled).argmax(1), torch.zeros(32).long())
    finetune_(model, images, FinetuningConfig(part="gates", epochs=20, learning_rate=0.1))
    with torch.no_grad():
        assert torch.equal(gate(pooled).argmax(1), labels)


def test_a_gate_of_a_real_network_chooses_otherwise_after_training(compressed, splits):
    model = compressed(0.0, 0.5)

    def masks():
        with torch.no_grad():
            model(splits.test.images)
        gates = gates_of(model)
        return torch.cat([gates.gate_for(site.group).mask for site in gates.sites], dim=1)

    before = masks()
    finetune_(model, splits.train, FinetuningConfig(part="gates", epochs=2, learning_rate=0.03))
    share = float((masks() != before).float().mean())
    assert 0.005 < share < 0.5


@pytest.fixture
def deciding(compressed, splits):
    """(a network that decides for each input, what decides)"""
    model = compressed(0.2, 0.4)
    with torch.no_grad():
        ratios, _ = telling_apart(model, splits.calibration.images)
        ratios.policy[-1].weight.mul_(0.05)  # a policy that a network can live with
    return model, ratios


def policy_of(ratios):
    return [f"runtime_gates.per_input.{name}" for name in ratios.state_dict()]


@pytest.mark.parametrize("part", ["all", "gates"])
def test_what_decides_for_each_input_stays_as_it_is(deciding, splits, part):
    model, ratios = deciding
    before, takes = snapshot(model), [one.requires_grad for one in model.parameters()]
    with_gradient = []

    def note(epoch):
        with_gradient.extend(name for name, one in model.named_parameters() if one.grad is not None)

    finetune_(
        model, few(splits.train), FinetuningConfig(part=part, epochs=2), control=RunControl(on_epoch=note)
    )
    touched = changed(model, before)
    assert not touched & set(policy_of(ratios))
    assert not set(with_gradient) & set(policy_of(ratios))
    # the gates it decides over do learn, as does what they are in
    for site in gates_of(model).sites:
        key = f"runtime_gates.{as_key(site.group)}"
        assert {f"{key}.weight", f"{key}.bias"} <= touched
    assert all(name.startswith("runtime_gates.") for name in touched) == (part == "gates")
    assert [one.requires_grad for one in model.parameters()] == takes


def test_all_parameters_but_the_policys_are_trained(deciding):
    model, ratios = deciding
    everything = {name: one for name, one in model.named_parameters() if name not in policy_of(ratios)}
    found = {id(one) for one in trained_parameters(model, "all")}
    assert found == {id(one) for one in everything.values()}
    found = {id(one) for one in trained_parameters(model, "gates")}
    gates = {id(one) for name, one in everything.items() if name.startswith("runtime_gates.")}
    assert found == gates


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_comes_closer_to_its_teacher_while_inputs_differ_in_what_runs(
    deciding, teacher, splits, precision
):
    model, ratios = deciding
    before = mean_divergence(model, teacher, splits.test)
    finetune_(model, splits.train, FinetuningConfig(epochs=2, precision=precision), teacher=teacher)
    assert mean_divergence(model, teacher, splits.test) < 0.8 * before
    with torch.no_grad():
        model(splits.test.images)
    counts = torch.stack(ratios.decided, dim=1)
    assert len(counts.unique(dim=0)) > 1
    for number, site in enumerate(gates_of(model).sites):
        assert torch.equal(gates_of(model).gate_for(site.group).mask.sum(1).long(), counts[:, number])
    assert changed(copy.deepcopy(model), model.state_dict()) == set()


class Watched(nn.Module):
    """A small network that notes the mode of its layers."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Linear(64, 10)
        self.modes = set()

    def forward(self, x):
        self.modes.add((self.training, self.norm.training, self.drop.training))
        return self.linear(self.drop(self.norm(x).flatten(1)))


def watched():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Watched().eval()


def test_layers_but_batch_norms_train_and_afterwards_nothing_does(splits):
    model = watched()
    state = torch.get_rng_state()
    with torch.no_grad():  # whatever the caller is doing
        finetune_(model, few(splits.train), FinetuningConfig(epochs=1))
    assert model.modes == {(False, False, True)}
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_teacher_is_evaluated_and_returns_to_its_mode(splits):
    model, teacher = watched(), watched().train()
    finetune_(model, few(splits.train), FinetuningConfig(epochs=1), teacher=teacher)
    assert teacher.modes == {(False, False, False)}
    assert teacher.training


def test_a_gated_network_can_be_copied_afterwards(compressed, splits):
    model = compressed(0.0, 0.5)
    finetune_(model, few(splits.train), FinetuningConfig(epochs=1))
    assert changed(copy.deepcopy(model), model.state_dict()) == set()


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_along_a_cosine(splits):
    config = FinetuningConfig(epochs=20, learning_rate=0.2)
    epochs = finetune_(watched(), few(splits.train, 8), config)  # a step each
    rates = [epoch.learning_rate for epoch in epochs]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.2])
    assert rates[11] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1 * (1 - math.cos(math.pi / 18)))


def test_no_step_is_longer_than_a_gradient_of_norm_five_makes_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    before = snapshot(model)["1.weight"]
    images = Images(torch.full((2, 1, 2, 2), 1e6), torch.tensor([0, 1]))
    config = FinetuningConfig(epochs=1, learning_rate=0.01, weight_decay=0.0)
    finetune_(model, images, config)  # one step, by Nesterov 1.9 long
    assert (model[1].weight - before).norm().item() == pytest.approx(0.01 * 1.9 * 5, rel=1e-4)


class Interrupted(Exception):
    pass


def interrupt_after(number):
    def on_epoch(epoch):
        if epoch.number == number:
            raise Interrupted

    return on_epoch


VARIED = {"epochs": 4, "shift": 1, "flip": True, "batch_size": 16, "seed": 3}


@pytest.mark.parametrize(
    ("kept", "how"),
    [
        (1, {}),
        (3, {}),
        (4, {}),
        (2, {"optimizer": "adamw", "schedule": "linear", "batch_norms": "trained"}),
        (2, {"precision": "float16", "batch_norms": "reestimated"}),
    ],
)
def test_an_interrupted_run_ends_with_the_very_same_weights(tmp_path, splits, kept, how):
    whole, before, after = watched(), watched(), watched()
    config, validation = FinetuningConfig(**VARIED, **how), few(splits.test)
    expected = finetune_(whole, splits.train, config, validation=validation)
    file, seen = tmp_path / "state.safetensors", []
    interrupted = RunControl(checkpoint=file, on_epoch=interrupt_after(kept))
    with pytest.raises(Interrupted):
        finetune_(before, splits.train, config, validation=validation, control=interrupted)
    resumed = RunControl(checkpoint=file, resume=True, on_epoch=seen.append)
    found = finetune_(after, splits.train, config, validation=validation, control=resumed)
    assert changed(after, whole.state_dict()) == set()
    assert found == expected
    assert tuple(seen) == expected[kept - 1 :]  # the last one before is told again
    assert list(tmp_path.iterdir()) == [file]


def test_a_gated_run_resumes_too(tmp_path, compressed, splits, teacher):
    whole, before, after = (compressed(0.0, 0.5) for _ in range(3))
    images, config = few(splits.train), FinetuningConfig(part="gates", epochs=3)
    file = tmp_path / "state.safetensors"
    finetune_(whole, images, config, teacher=teacher)
    interrupted = RunControl(checkpoint=file, on_epoch=interrupt_after(1))
    with pytest.raises(Interrupted):
        finetune_(before, images, config, teacher=teacher, control=interrupted)
    finetune_(after, images, config, teacher=teacher, control=RunControl(checkpoint=file, resume=True))
    assert changed(after, whole.state_dict()) == set()


def test_the_seed_decides(splits):
    first, again, other = watched(), watched(), watched()
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        finetune_(model, few(splits.train), FinetuningConfig(epochs=1, seed=seed))
    assert changed(first, again.state_dict()) == set()
    assert changed(first, other.state_dict())


def test_resuming_where_nothing_was_kept_begins(tmp_path, splits):
    first, second = watched(), watched()
    finetune_(first, few(splits.train), FinetuningConfig(epochs=1))
    finetune_(
        second,
        few(splits.train),
        FinetuningConfig(epochs=1),
        control=RunControl(checkpoint=tmp_path / "deep" / "state.safetensors", resume=True),
    )
    assert changed(first, second.state_dict()) == set()
    assert (tmp_path / "deep" / "state.safetensors").exists()


class TestACheckpointThatDoesNotFit:
    @pytest.fixture
    def file(self, tmp_path, splits):
        control = RunControl(checkpoint=tmp_path / "state.safetensors")
        finetune_(watched(), few(splits.train), FinetuningConfig(epochs=1), control=control)
        return tmp_path / "state.safetensors"

    def refusal(self, file, splits, model=None, teacher=None, **settings):
        model = model or watched()
        before = snapshot(model)
        config, control = (
            FinetuningConfig(**{"epochs": 1, **settings}),
            RunControl(checkpoint=file, resume=True),
        )
        with pytest.raises(PruningError) as caught:
            finetune_(model, few(splits.train), config, teacher=teacher, control=control)
        assert_untouched(model, before)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"epochs": 2}, "epochs"),
            ({"seed": 1}, "seed"),
            ({"learning_rate": 1.0}, "learning_rate"),
            ({"optimizer": "adamw", "learning_rate": 3e-3}, "optimizer"),
            ({"schedule": "linear"}, "schedule"),
            ({"precision": "bfloat16"}, "precision"),
            ({"batch_norms": "trained"}, "batch_norms"),
        ],
    )
    def test_of_other_settings(self, file, splits, settings, named):
        assert f"was made with other {named}; repeat them" in self.refusal(file, splits, **settings)

    def test_of_another_teacher_or_network(self, file, splits):
        assert "other distillation" in self.refusal(file, splits, teacher=watched())
        model = watched()
        model.linear.bias.data[0] += 1
        assert "other initial weights" in self.refusal(file, splits, model=model)

    def test_cut_off(self, file, splits):
        file.write_bytes(file.read_bytes()[:1000])
        assert f"{file} is truncated, damaged, or no checkpoint" in self.refusal(file, splits)

    def test_no_checkpoint_at_all(self, file, splits):
        torch.save({"weight": torch.zeros(1)}, file)
        assert "no checkpoint" in self.refusal(file, splits)

    def test_with_an_epoch_that_is_none(self, file, splits):
        record, tensors = read_state(file)
        record["history"][-1]["learning_rate"] = "x"
        write_state(file, record, tensors)
        assert "no checkpoint" in self.refusal(file, splits)

    def test_that_would_run_code(self, file, splits, tmp_path):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "sprung"), "w"))

        file.write_bytes(pickle.dumps(Trap()))
        assert "no checkpoint" in self.refusal(file, splits)
        assert not (tmp_path / "sprung").exists()


def test_wrong_arguments(splits):
    images = few(splits.train)
    model, other = watched(), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    before = snapshot(model)
    with pytest.raises(UnknownNameError, match=r"no part named 'gate'\. Did you mean 'gates'?"):
        finetune_(model, images, FinetuningConfig(part="gate", epochs=1))
    with pytest.raises(PruningError, match="the network has no runtime gates to train"):
        finetune_(model, images, FinetuningConfig(part="gates", epochs=1))
    with pytest.raises(PruningError, match="epochs must be 1 or more, got 0"):
        finetune_(model, images, FinetuningConfig(epochs=0))
    for name in ("optimizer", "schedule", "precision"):
        with pytest.raises(UnknownNameError, match=f"no {name} named 'best'"):
            finetune_(model, images, FinetuningConfig(epochs=1, **{name: "best"}))
    with pytest.raises(PruningError, match="learning_rate must be above 0 and finite, got 0"):
        finetune_(model, images, FinetuningConfig(epochs=1, learning_rate=0))
    with pytest.raises(PruningError, match=r"the teacher returned logits \[64, 3\], the network \[64, 10\]"):
        finetune_(model, few(splits.train, 64), FinetuningConfig(epochs=1), teacher=other)
    assert_untouched(model, before)


def test_a_loss_that_is_not_a_number_says_the_way_out(splits):
    images = few(splits.train)
    broken = Images(images.images.clone().fill_(float("nan")), images.labels)
    model = watched()
    with pytest.raises(PruningError, match=r"in epoch 1: the loss is nan; try a learning rate below 0\.003"):
        finetune_(model, broken, FinetuningConfig(epochs=1))
    assert not model.training


class WithAuxiliaryHead(nn.Module):
    """Returns more in training, as GoogLeNet does, from a head that was not traced and so not cut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head, self.auxiliary = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def test_what_runs_in_training_alone_takes_no_part(splits):
    model = WithAuxiliaryHead().eval()
    network = PrunableNetwork(model, real_images(model, [splits.calibration.images]))
    small = network.apply(CompressionPlan({"stem.0": ratios(0.5, 0.0)})).model
    before, dropped = snapshot(small), []
    small.stem[3].register_forward_hook(lambda dropout, args, output: dropped.append(dropout.training))
    finetune_(small, few(splits.train), FinetuningConfig(epochs=1))
    assert "head.weight" in changed(small, before)
    assert "auxiliary.weight" not in changed(small, before)
    assert all(dropped)
