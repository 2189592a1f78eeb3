"""The curves of a network that is trained."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from prunegym.pruning.training.loop import Epoch


class Curves:
    """What epochs come to, in TensorBoard; nothing is written before there is something to see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, epoch: Epoch) -> None:
        """Add an epoch."""
        self._writer = self._writer or SummaryWriter(str(self._folder))
        for name in ("loss", "learning_rate", "accuracy"):
            value = getattr(epoch, name)
            if value is not None:
                self._writer.add_scalar(f"finetune/{name}", value, epoch.number)
        self._writer.flush()  # an epoch can take minutes; whoever watches wants to see it now

    def close(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
