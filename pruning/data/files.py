"""Images in files, read when they are asked for, so that memory does not grow with their number."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from prunegym.pruning.data.preparation import read_image
from prunegym.pruning.networks.registry import NetworkSpec

_THREADS = min(16, os.cpu_count() or 1)  # decoding and scaling release Python's lock


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in a folder's files, as a network reads them."""

    folder: Path
    names: Sequence[str]  # of the files, relative to the folder
    network: NetworkSpec
    progress: bool = False  # show a bar while all are read, if stderr is a terminal

    def part(self, which: Tensor) -> ImageFiles:
        """Return the images of these numbers."""
        return replace(self, names=[self.names[number] for number in which.tolist()])

    def __getitem__(self, which: Tensor) -> Tensor:
        """Return the images of these numbers.

        Raises:
            DataError: a file is no image, or damaged.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            return torch.stack(list(pool.map(self._read, which.tolist())))

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all images in order; while one batch is worked on, the next is read.

        Raises:
            DataError: a file is no image, or damaged.
        """
        pool = ThreadPoolExecutor(_THREADS)
        reading: deque[list[Future[Tensor]]] = deque()
        count, shown = len(self.names), self.progress and sys.stderr.isatty()
        try:
            with tqdm(total=count, desc="images", unit="", disable=not shown, leave=False) as bar:
                for start in range(0, count + batch_size, batch_size):  # a last time to read nothing more
                    numbers = range(start, min(start + batch_size, count))
                    reading.append([pool.submit(self._read, number) for number in numbers])
                    if start > 0:
                        batch = torch.stack([image.result() for image in reading.popleft()])
                        yield batch
                        bar.update(len(batch))
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, number: int) -> Tensor:
        return read_image(self.folder / self.names[number], self.network)
