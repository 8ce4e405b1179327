"""A sparse matrix in coordinate form, with repeated entries allowed."""

from __future__ import annotations

from typing import Optional

import torch

from escaip_fairchem._imports import missing_attribute
from escaip_fairchem.errors import MissingDependencyError


class _Entries:
    """The entries of a `SparseTensor`, sorted by (row, column), under the names that callers read them by."""

    def __init__(self, row: torch.Tensor, col: torch.Tensor, value: torch.Tensor | None) -> None:
        self._row = row
        self._col = col
        self._value = value

    def row(self) -> torch.Tensor:
        """Row of every entry, int64, shape (E,)."""
        return self._row

    def col(self) -> torch.Tensor:
        """Column of every entry, int64, shape (E,)."""
        return self._col

    def value(self) -> torch.Tensor | None:
        """Value of every entry, shape (E, …), or None."""
        return self._value


class SparseTensor:
    """A sparse matrix whose entries are kept sorted by (row, column), duplicates included and in their given order.

    Args:
        row: Row of every entry, int64, shape (E,).
        rowptr: Not covered; has to be None.
        col: Column of every entry, int64, shape (E,).
        value: Value of every entry, shape (E, …), or None.
        sparse_sizes: Number of rows and of columns. By default the largest row and column plus one.
        is_sorted: Whether the entries come sorted. (Sorted ones are recognised anyway.)
        trust_data: Accepted for the signature's sake.

    Raises:
        MissingDependencyError: ``rowptr`` is given, or ``row`` or ``col`` is missing.
    """

    def __init__(
        self,
        row: torch.Tensor | None = None,
        rowptr: torch.Tensor | None = None,
        col: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        sparse_sizes: tuple[int, int] | None = None,
        is_sorted: bool = False,
        trust_data: bool = False,
    ) -> None:
        if row is None or col is None or rowptr is not None:
            raise MissingDependencyError(
                "a SparseTensor from anything but row=, col= and value= is not covered by "
                "escaip_fairchem's stand-in for torch_sparse; install the real one with `pip install torch-sparse`"
            )
        if sparse_sizes is None:
            n_rows = int(row.max()) + 1 if row.numel() > 0 else 0
            n_cols = int(col.max()) + 1 if col.numel() > 0 else 0
        else:
            n_rows, n_cols = sparse_sizes
        if not is_sorted:
            order = torch.argsort(row * max(n_cols, 1) + col, dim=0, stable=True)
            row = row[order]
            col = col[order]
            if value is not None:
                value = value[order]
        self._n_rows: int = n_rows
        self._n_cols: int = n_cols
        self.storage = _Entries(row, col, value)

    def sparse_sizes(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self._n_rows, self._n_cols

    def coo(self) -> tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:  # noqa: UP045 (TorchScript fails on |)
        """Rows, columns and values of the entries, in their sorted order."""
        return self.storage.row(), self.storage.col(), self.storage.value()

    def __getitem__(self, index: torch.Tensor) -> SparseTensor:
        """Select rows.

        Args:
            index: Which rows, int64, shape (R,), repeats allowed.

        Returns:
            A matrix of R rows; row i is row ``index[i]`` of this one.

        Raises:
            MissingDependencyError: ``index`` is anything else than such a tensor.
        """
        if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.dim() != 1:
            raise MissingDependencyError(
                "indexing a SparseTensor by anything but a one-dimensional int64 tensor is not covered by "
                "escaip_fairchem's stand-in for torch_sparse; install the real one with `pip install torch-sparse`"
            )
        row, col, value = self.coo()
        row_length = torch.bincount(row, minlength=self._n_rows)
        row_start = row_length.cumsum(0) - row_length
        length = row_length[index]
        start = length.cumsum(0) - length
        new_row = torch.repeat_interleave(torch.arange(index.size(0), device=index.device), length)
        entry = torch.arange(new_row.size(0), device=index.device) - start[new_row] + row_start[index][new_row]
        return SparseTensor(
            new_row,
            None,
            col[entry],
            None if value is None else value[entry],
            (index.size(0), self._n_cols),
            True,
            True,
        )

    def set_value(self, value: torch.Tensor | None, layout: str | None = None) -> SparseTensor:
        """Build a matrix with the same entries and other values.

        Args:
            value: Value of every entry in sorted order, shape (E, …), or None.
            layout: ``coo``, which is also the default.

        Raises:
            MissingDependencyError: ``layout`` is another one.
        """
        return SparseTensor(
            self.storage.row(), None, self.storage.col(), None, (self._n_rows, self._n_cols), True, True
        ).set_value_(value, layout)

    def set_value_(self, value: torch.Tensor | None, layout: str | None = None) -> SparseTensor:
        """Replace the values in place; see `set_value`.

        Returns:
            This matrix.
        """
        if layout is not None and layout != "coo":
            raise MissingDependencyError(
                "SparseTensor.set_value with a layout other than 'coo' is not covered by "
                "escaip_fairchem's stand-in for torch_sparse; install the real one with `pip install torch-sparse`"
            )
        self.storage._value = value
        return self

    def sum(self, dim: int) -> torch.Tensor:
        """Sum every row.

        Args:
            dim: Has to be 1.

        Returns:
            Shape (rows, …). Entries without values count as 1, in the default float type.

        Raises:
            MissingDependencyError: ``dim`` is another one.
        """
        if dim != 1:
            raise MissingDependencyError(
                "SparseTensor.sum over anything but dim=1 is not covered by escaip_fairchem's pure-PyTorch "
                "stand-in for torch_sparse; install the real one with `pip install torch-sparse`"
            )
        row, _, value = self.coo()
        if value is None:
            value = torch.ones(row.size(0), device=row.device)
        shape = [self._n_rows] + list(value.shape[1:])  # noqa: RUF005 (TorchScript has no star)
        return torch.zeros(shape, dtype=value.dtype, device=value.device).index_add_(0, row, value)


def _uncovered(self: SparseTensor, name: str) -> object:
    raise missing_attribute("torch_sparse", f"torch_sparse.SparseTensor.{name}")


# Assigned from outside, because torch.jit.script compiles whatever is defined inside a class.
SparseTensor.__getattr__ = _uncovered  # type: ignore[attr-defined]
