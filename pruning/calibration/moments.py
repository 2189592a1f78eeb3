"""Second moments of a layer's unfolded input, and the regressions solved from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean input variance (docs/decisions.md, D24)
MAX_FULL_INPUTS = 8192  # input dimensions above which the full covariance (0.5 GB) gives way to sampled rows
N_SAMPLED_ROWS = 2048


class Covariance(Protocol):
    """The covariance of one convolution group of a reader's inputs, as far as least squares needs it."""

    def regression(self, removed: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
        """Return C[R,S] (C[S,S] + lambda I)^-1, [len(removed), len(kept)], lambda = ridge * mean diagonal."""
        ...

    def factor(self, order: Tensor, *, ridge: float) -> Tensor:
        """Return L, [dimensions, rank], zero above its diagonal, with LL' = C + lambda I in the given order.

        The corner L[k:, k:] is then a factor of what the first k inputs cannot explain of the others.
        """
        ...


@dataclass(frozen=True)
class FullCovariance:
    """A covariance matrix: [dimensions, dimensions], float64."""

    matrix: Tensor

    def regression(self, removed: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
        """See Covariance."""
        inner = self.matrix[kept][:, kept]
        factor = torch.linalg.cholesky(damped(inner, ridge * self.matrix.diagonal().mean()))
        return torch.cholesky_solve(self.matrix[kept][:, removed], factor).T

    def factor(self, order: Tensor, *, ridge: float) -> Tensor:
        """See Covariance."""
        penalty = ridge * self.matrix.diagonal().mean()
        return torch.linalg.cholesky(damped(self.matrix[order][:, order], penalty))


@dataclass(frozen=True)
class SampledCovariance:
    """A covariance known by sampled, centred rows: [rows, dimensions], with fewer rows than dimensions."""

    rows: Tensor

    def regression(self, removed: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
        """See Covariance. Solved in the space of rows: X_R' (X_S X_S' + n lambda I)^-1 X_S."""
        inner, outer = self.rows[:, kept], self.rows[:, removed]
        penalty = ridge * self.rows.square().mean()
        factor = torch.linalg.cholesky(damped(inner @ inner.T, len(self.rows) * penalty))
        return outer.T @ torch.cholesky_solve(inner, factor)

    def factor(self, order: Tensor, *, ridge: float) -> Tensor:
        """See Covariance. Without the ridge, which would give it full rank."""
        return torch.linalg.qr(self.rows[:, order], mode="r").R.T / len(self.rows) ** 0.5


def damped(matrix: Tensor, penalty: Tensor) -> Tensor:
    """Return a covariance with a penalty on its diagonal, so that it can be factored."""
    # the floor keeps the factorisation alive where all inputs are constant (a dead layer)
    floor = 1e-10 * matrix.diagonal().max() + torch.finfo(matrix.dtype).tiny ** 0.5
    return matrix + (penalty + floor) * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


@dataclass(frozen=True)
class Moments:
    """First and second moments of a reader's unfolded input u, per convolution group."""

    mean: Tensor  # [conv groups, dimensions], float64
    covariances: tuple[Covariance, ...]  # one per convolution group


class FullSums:
    """Running sums over batches, about a pivot that keeps the differences small."""

    def __init__(self, u: Tensor) -> None:
        groups, _, dimensions = u.shape
        self._total = 0
        self._pivot = u.mean(1, keepdim=True)
        self._first = torch.zeros(groups, dimensions, dtype=torch.float64, device=u.device)
        self._second = torch.zeros(groups, dimensions, dimensions, dtype=torch.float64, device=u.device)

    def add(self, u: Tensor) -> None:
        """Take in inputs [conv groups, rows, dimensions]."""
        centred = u - self._pivot
        self._total += u.size(1)
        self._first += centred.sum(1).double()
        self._second += (centred.mT @ centred).double()

    def moments(self) -> Moments:
        """Return mean and covariance of all that was added."""
        mean = self._pivot[:, 0].double() + self._first / self._total
        return Moments(mean, tuple(FullCovariance(group) for group in self.covariances()))

    def covariances(self) -> Tensor:
        """Return the covariances of all that was added: [conv groups, dimensions, dimensions], float64."""
        shift = self._first / self._total
        return self._second / self._total - shift[:, :, None] * shift[:, None, :]


class SampledRows:
    """An even sample of the rows themselves, for readers too wide for a covariance matrix."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._kept = self._seen = 0
        self._stride = 1

    def add(self, u: Tensor) -> None:
        """Take in inputs [conv groups, rows, dimensions]."""
        sample = u[:, -self._seen % self._stride :: self._stride]
        self._rows.append(sample.clone())  # a view would keep all
        self._seen += u.size(1)
        self._kept += sample.size(1)
        if self._kept > 2 * N_SAMPLED_ROWS:
            step = -(-self._kept // N_SAMPLED_ROWS)
            self._rows = [torch.cat(self._rows, dim=1)[:, ::step].clone()]
            self._kept = self._rows[0].size(1)
            self._stride *= step

    def moments(self) -> Moments:
        """Return the mean and, as a covariance, an even sample of the centred rows."""
        rows = torch.cat(self._rows, dim=1)
        rows = rows[:, :: -(-rows.size(1) // N_SAMPLED_ROWS)].double()
        mean = rows.mean(1)
        return Moments(mean, tuple(SampledCovariance(group) for group in rows - mean[:, None]))
