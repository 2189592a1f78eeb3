"""The commands that are attacked."""

from __future__ import annotations

from dataclasses import dataclass

from prunegym.scripts.benchmarks.faults.material import Material

FEW = {  # hyper-parameters with which an algorithm learns a little from a dozen episodes
    "dyna-ppo": (
        "evaluated_episodes=4",
        "warmup_episodes=4",
        "imagined_episodes=16",
        "episodes_per_update=8",
        "n_epochs=1",
    ),
    "ppo": ("episodes_per_update=4", "n_epochs=1"),
    "sac": ("warmup_episodes=4", "batch_size=16", "updates_per_step=1"),
    "td3": ("warmup_episodes=4", "batch_size=16", "updates_per_step=1"),
    "ddpg": ("warmup_episodes=4", "batch_size=16", "updates_per_step=1"),
    "amc": ("warmup_episodes=4", "batch_size=16", "policy_kwargs.net_arch=[16, 16]"),
}
EPISODES = 14


@dataclass(frozen=True)
class Command:
    """A command line; results go to the folder `out`, where it writes any.

    Words in braces stand for what the campaign made: {compressed}, a folder that `prune` wrote, and {plan}.
    """

    verb: str
    flags: tuple[str, ...] = ()
    dense: bool = True  # whether the dense network and the images are named
    out: tuple[str, ...] = ("--out", "out")
    again: str | None = "--overwrite"  # the flag that repeats it where `out` holds something

    def argv(self, material: Material, known: dict[str, str], *, repeated: bool = False) -> list[str]:
        """Return the command line, perhaps of a repetition."""
        named = material.flags if self.dense else []
        more = [self.again] if repeated and self.again else []
        words = [self.verb, *named, *(word.format(**known) for word in self.flags), *self.out, *more]
        return [word for word in words if word]


def _train(algorithm: str, *flags: str, baselines: tuple[str, ...] = (), budget: str = "0.6") -> Command:
    few = [word for setting in FEW.get(algorithm, ()) for word in ("--hyper", setting)]
    how = ("--budget", f"macs={budget}", "--algo", algorithm, "--episodes", str(EPISODES), *few)
    return Command("train", (*how, "--baselines", *baselines, *flags), again="--resume")


PER_INPUT = (
    "--budget", "macs=0.7", "--episodes", "120", "--hyper", "n_epochs=1", "--hyper", "episodes_per_update=40",
)  # fmt: skip
FINETUNE = (
    "--compressed", "{compressed}", "--model", "{model}", "--data", "{data}", "--device", "cpu",
    "--epochs", "3", "--batch-size", "32", "--quiet",
)  # fmt: skip
EXPORT = ("--compressed", "{compressed}", "--model", "{model}", "--data", "{data}")
COMMANDS: dict[str, Command] = {
    **{f"train {name}": _train(name) for name in FEW},
    "train ppo and a baseline": _train("ppo", baselines=("random",)),
    "train in two processes": _train("ppo", "--n-envs", "2"),
    "train for a range": _train("ppo", budget="0.5..0.9"),
    "train cma-es": _train("cma-es"),
    "train random and sensitivity": _train("random", baselines=("sensitivity",)),
    "train-per-input": Command("train-per-input", PER_INPUT, again="--resume"),
    "train-per-input and tune": Command(
        "train-per-input", (*PER_INPUT, "--tune-epochs", "1"), again="--resume"
    ),
    "prune": Command("prune", ("--static-ratio", "0.4", "--runtime-ratio", "0.3")),
    "prune by a plan": Command("prune", ("--plan", "{plan}")),
    "finetune": Command("finetune", (*FINETUNE, "--validate"), dense=False, again="--resume"),
    "finetune by distillation": Command(
        "finetune",
        (*FINETUNE, "--learn", "distillation", "--weights", "{weights}"),
        dense=False,
        again="--resume",
    ),
    "evaluate": Command("evaluate"),
    "export onnx": Command("export", EXPORT, dense=False, out=("--out", "out/model.onnx")),
    "export pt2": Command(
        "export", (*EXPORT, "--format", "pt2"), dense=False, out=("--out", "out/model.pt2")
    ),
    "latency": Command(
        "latency", ("--model", "{model}", "--input-size", "1", "8", "8"), dense=False, out=(), again=None
    ),
}
