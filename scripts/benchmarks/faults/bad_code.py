"""Networks and score functions whose code misbehaves."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from prunegym.scripts.benchmarks.faults.children import Place
from prunegym.scripts.benchmarks.faults.material import NETWORK
from prunegym.scripts.benchmarks.faults.quick_commands import Case, quick
from prunegym.scripts.benchmarks.faults.world import World

FORWARD = "        return self.linear(self.c(self.b(self.a(x))).mean((2, 3)))\n"
FORWARDS: Mapping[str, tuple[str, bool]] = {  # what comes before forward's last line, whether it must fail
    "sys.exit(0)": ("import sys; sys.exit(0)", True),
    "sys.exit(3)": ("import sys; sys.exit(3)", True),
    "SystemExit with markup": ("raise SystemExit('[/red]')", True),
    "BaseException": ("raise type('Odd', (BaseException,), {})('odd')", True),
    "an error that cannot be shown": (
        "raise type('Odd', (ValueError,), dict.fromkeys(('__str__', '__repr__'), lambda self: 1 / 0))()",
        True,
    ),
    "an error of many lines": ("raise ValueError('a\\nb\\n' * 500)", True),
    "an error with escape sequences": ("raise ValueError('\\x1b[31m[/red]\\x00')", True),
    "GeneratorExit": ("raise GeneratorExit", True),
    "StopIteration": ("raise StopIteration", True),
    "MemoryError": ("raise MemoryError", True),
    "RecursionError": ("f = lambda: f(); f()", True),
    "prints": ("print('[/red]' * 1000)", False),
    "prints ten megabytes": ("print('x' * 10_000_000)", False),
    "closes stdout": ("import sys; sys.stdout.close()", False),
    "closes standard input": ("import os; os.close(0)", False),
    "changes the folder": ("import os; os.chdir('/')", False),
    "removes the folder": ("import os, shutil; shutil.rmtree(os.getcwd(), ignore_errors=True)", False),
    "takes over signals": ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", False),
    "warns": ("import warnings; warnings.warn('[/red]\\nodd')", False),
    "returns nothing": ("return None", True),
    "returns text": ("return 'cat'", True),
    "returns NaN": ("return self.linear(self.c(self.b(self.a(x))).mean((2, 3))) * float('nan')", False),
    "returns one number": ("return x.mean()", True),
    "returns a pair": ("return x, x", True),
    "random": ("x = x + torch.rand_like(x)", False),
    "changes its weights": ("self.linear.weight.data.zero_()", False),
    "changes its input": ("x = x.mul_(2)", False),
    "float64": ("self.double(); x = x.double()", False),
    "leaves a thread behind": (
        "import threading as t, time; t.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        False,
    ),
    "changes torch's defaults": ("torch.set_default_dtype(torch.float64)", False),
    "changes numbers of threads": ("torch.set_num_threads(3)", False),
    "empties the environment": ("import os; os.environ.clear()", False),
}  # fmt: skip
FILES: Mapping[str, str] = {
    "no Python": "def (:\n",
    "sys.exit(0) when it is read": "import sys\nsys.exit(0)\n",
    "BaseException when it is read": "raise type('Odd', (BaseException,), {})()\n",
    "a network that is no module": "def Net():\n    return 3\n",
    "a network that wants arguments": "def Net(a, b):\n    return a\n",
    "a network without weights": "from torch import nn\n\n\ndef Net():\n    return nn.Flatten()\n",
    "a network on no device": NETWORK + "\n\nBuild = Net\n\n\ndef Net():\n    return Build().to('meta')\n",
    "a network of half precision": NETWORK + "\n\nBuild = Net\n\n\ndef Net():\n    return Build().half()\n",
    "a network of float64": NETWORK + "\n\nBuild = Net\n\n\ndef Net():\n    return Build().double()\n",
    "sys.exit(0) when it is built": "import sys\n\n\ndef Net():\n    sys.exit(0)\n",
    "layers with odd names": NETWORK.replace("self.c = ", "self._modules[ODD] = ")
    .replace("self.c(", "self._modules[ODD](")
    .replace("class", "ODD = '[/red]\\x1b[31m'\n\n\nclass"),
    "Latin-1": "# caf\udce9\n" + NETWORK,
    "NUL": "\x00" + NETWORK,
}  # fmt: skip


def network(number: int, rng: Random, world: World, place: Place) -> Case:
    """Return a command on a network whose code misbehaves."""
    kinds = (*FORWARDS, *FILES)
    kind, must_fail = kinds[number % len(kinds)], False
    if kind in FORWARDS:
        line, must_fail = FORWARDS[kind]
        text = NETWORK.replace(FORWARD, f"        {line}\n{FORWARD}")
    else:
        text = FILES[kind]
    (place.work / "odd.py").write_text(text, encoding="utf-8", errors="surrogateescape")
    verb = rng.choice(["describe", "latency", "prune", "train", "evaluate"])
    argv = [*quick(verb, world), "--model", "odd.py:Net"]
    return Case(f"{verb}, a network: {kind}", argv, must_fail and verb != "describe")


def score(number: int, rng: Random, world: World, place: Place) -> Case:
    """Return a command that is judged by a function which misbehaves."""
    lines = [
        *(
            line
            for line, _ in FORWARDS.values()
            if "self." not in line and "x." not in line and "(x" not in line
        ),
        "return float('nan')",
        "return 10 ** 400",
        "return float('inf')",
        "return torch.ones(3)",
        "return True",
    ]
    line = lines[number % len(lines)]
    text = f"import torch\n\n\ndef score(model):\n    {line}\n    return 0.5\n"
    (place.work / "odd.py").write_text(text, encoding="utf-8")
    verb = rng.choice(["train", "prune", "evaluate"])
    return Case(f"{verb}, a score function: {line}", [*quick(verb, world), "--score", "odd.py:score"])
