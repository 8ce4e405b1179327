"""The stand-ins for torch_scatter and torch_sparse against loops in plain Python, wherever the real ones are."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix

import escaip_fairchem
from escaip_fairchem.errors import MissingDependencyError

FOLDER = Path(escaip_fairchem.__file__).parent / "plugin" / "standins"
REDUCES = ["sum", "add", "mean", "min", "max"]


def load(name: str) -> Iterator[ModuleType]:
    """Load a stand-in under a name of its own, so that a real package in the environment is not in the way."""
    alias = f"standin_{name}"
    location = FOLDER / name / "__init__.py"
    spec = importlib.util.spec_from_file_location(alias, location, submodule_search_locations=[str(location.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [key for key in sys.modules if key.partition(".")[0] == alias]:
        del sys.modules[loaded]


@pytest.fixture(scope="module")
def scatter_module() -> Iterator[ModuleType]:
    yield from load("torch_scatter")


@pytest.fixture(scope="module")
def sparse_module() -> Iterator[ModuleType]:
    yield from load("torch_sparse")


@pytest.fixture(params=["eager", "scripted"])
def maybe_script(request: pytest.FixtureRequest):
    return torch.jit.script if request.param == "scripted" else lambda function: function


def reference(src: np.ndarray, index: np.ndarray, axis: int, groups: int, reduce: str) -> np.ndarray:
    """Reduce entry by entry; index has the shape of src."""
    shape = list(src.shape)
    shape[axis] = groups
    found: dict[tuple[int, ...], list[float]] = {}
    for place in np.ndindex(*src.shape):
        target = list(place)
        target[axis] = int(index[place])
        found.setdefault(tuple(target), []).append(src[place])
    out = np.zeros(shape, dtype=src.dtype)
    for place, entries in found.items():
        total = sum(entries)
        mean = total // len(entries) if np.issubdtype(src.dtype, np.integer) else total / len(entries)
        out[place] = {"sum": total, "add": total, "mean": mean, "min": min(entries), "max": max(entries)}[reduce]
    return out


def spread(index: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Give a one-dimensional index the shape of the source, entry by entry."""
    return np.array([index[place[axis]] for place in np.ndindex(*shape)]).reshape(shape)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(
    ("shape", "dim"), [((17,), 0), ((17,), -1), ((9, 4), 0), ((4, 9), 1), ((4, 9), -1), ((9, 2, 3), 0), ((2, 9, 3), 1)]
)
def test_scatter_is_a_reduction_by_index(scatter_module, maybe_script, shape, dim, reduce):
    generator = torch.Generator().manual_seed(len(shape) + 7 * dim + 50)
    src = torch.randn(shape, generator=generator, dtype=torch.float64)
    axis = dim % len(shape)
    index = torch.randint(0, 5, (shape[axis],), generator=generator)
    out = maybe_script(scatter_module.scatter)(src, index, dim=dim, dim_size=8, reduce=reduce)
    expected = reference(src.numpy(), spread(index.numpy(), shape, axis), axis, 8, reduce)
    torch.testing.assert_close(out, torch.from_numpy(expected), rtol=1e-13, atol=1e-13)
    assert (out.select(axis, 7) == 0).all()


@pytest.mark.parametrize("reduce", REDUCES)
def test_scatter_with_an_index_for_every_entry(scatter_module, reduce):
    generator = torch.Generator().manual_seed(3)
    src = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    index = torch.randint(0, 4, (6, 5), generator=generator)
    for dim in (0, 1):
        out = scatter_module.scatter(src, index, dim=dim, dim_size=4, reduce=reduce)
        expected = reference(src.numpy(), index.numpy(), dim, 4, reduce)
        torch.testing.assert_close(out, torch.from_numpy(expected))


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.bfloat16, torch.float16])
def test_scatter_keeps_the_dtype(scatter_module, reduce, dtype):
    src = torch.tensor([-3, 4, 5, -8, 2]).to(dtype)
    index = torch.tensor([0, 0, 2, 2, 2])
    out = scatter_module.scatter(src, index, reduce=reduce)
    assert out.dtype == dtype
    exact = src.numpy() if not dtype.is_floating_point else src.double().numpy()
    expected = torch.from_numpy(reference(exact, index.numpy(), 0, 3, reduce)).to(dtype)
    torch.testing.assert_close(out, expected)


def test_the_number_of_groups_defaults_to_the_largest_index_plus_one(scatter_module, maybe_script):
    scatter = maybe_script(scatter_module.scatter)
    assert scatter(torch.ones(3), torch.tensor([4, 1, 1])).tolist() == [0, 2, 0, 0, 1]
    for reduce in REDUCES:
        assert scatter(torch.ones(0, 3), torch.zeros(0, dtype=torch.int64), 0, reduce=reduce).shape == (0, 3)
        empty = scatter(torch.ones(0, 3), torch.zeros(0, dtype=torch.int64), 0, dim_size=2, reduce=reduce)
        assert empty.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [("sum", [13, 20, 32]), ("mean", [6.5, 20, 32]), ("max", [10, 20, 30]), ("min", [1, 20, 2])],
)
def test_scatter_into_a_given_tensor(scatter_module, maybe_script, reduce, expected):
    out = torch.tensor([10.0, 20.0, 30.0])
    result = maybe_script(scatter_module.scatter)(
        torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0, 0, 2]), 0, out, None, reduce
    )
    assert result.data_ptr() == out.data_ptr()
    assert out.tolist() == expected


@pytest.mark.parametrize("reduce", REDUCES)
def test_first_and_second_derivatives(scatter_module, reduce):
    generator = torch.Generator().manual_seed(5)
    src = torch.randn(7, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 3, 1, 1, 3, 0, 0])

    def function(values: torch.Tensor) -> torch.Tensor:
        return scatter_module.scatter(values, index, dim=0, dim_size=5, reduce=reduce) ** 2

    assert torch.autograd.gradcheck(function, (src,))
    assert torch.autograd.gradgradcheck(function, (src,))


@pytest.mark.parametrize("reduce", REDUCES)
def test_scripted_gradients_equal_eager_ones(scatter_module, reduce):
    src = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    index = torch.tensor([0, 3, 1, 1, 3, 0, 0])
    weight = torch.arange(10.0, dtype=torch.float64).view(5, 2)
    gradients = [
        torch.autograd.grad((function(src, index, 0, None, 5, reduce) * weight).sum(), src)[0]
        for function in (scatter_module.scatter, torch.jit.script(scatter_module.scatter))
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_gradient_of_an_extremum_goes_to_one_entry(scatter_module):
    src = torch.tensor([2.0, 5.0, 5.0, 1.0], requires_grad=True)
    scatter_module.scatter(src, torch.tensor([0, 0, 0, 1]), reduce="max").backward(torch.tensor([10.0, 7.0]))
    assert src.grad.tolist() == [0, 10, 0, 7]


def test_nan_is_passed_on(scatter_module):
    src = torch.tensor([1.0, float("nan"), 3.0])
    for reduce in REDUCES:
        out = scatter_module.scatter(src, torch.tensor([0, 0, 1]), reduce=reduce)
        assert out[0].isnan()
        assert out[1] == 3


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("trailing", [(), (3,), (2, 2)])
def test_segments(scatter_module, maybe_script, reduce, trailing):
    lengths = torch.tensor([2, 0, 4, 1, 0])
    index = torch.repeat_interleave(torch.arange(5), lengths)
    src = torch.randn(7, *trailing, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = torch.from_numpy(reference(src.numpy(), spread(index.numpy(), src.shape, 0), 0, 5, reduce))
    coo = maybe_script(scatter_module.segment_coo)(src, index, dim_size=5, reduce=reduce)
    torch.testing.assert_close(coo, expected)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    csr = maybe_script(scatter_module.segment_csr)(src, indptr, reduce=reduce)
    torch.testing.assert_close(csr, expected)
    part = maybe_script(scatter_module.segment_csr)(src, torch.tensor([2, 5, 6]), reduce=reduce)
    inner = torch.tensor([0, 0, 0, 1])
    torch.testing.assert_close(
        part, torch.from_numpy(reference(src[2:6].numpy(), spread(inner.numpy(), src[2:6].shape, 0), 0, 2, reduce))
    )
    src.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scatter_module.segment_csr(x, indptr, reduce=reduce), (src,))


def test_segment_coo_along_the_last_axis_of_its_index(scatter_module):
    src = torch.arange(12.0).view(2, 3, 2)
    out = scatter_module.segment_coo(src, torch.tensor([[0, 0, 1], [0, 1, 1]]), dim_size=2)
    assert out.tolist() == [[[2, 4], [4, 5]], [[6, 7], [18, 20]]]


def test_broadcast(scatter_module, maybe_script):
    broadcast = maybe_script(scatter_module.utils.broadcast)
    other = torch.zeros(2, 3, 4)
    for dim, length in [(0, 2), (1, 3), (2, 4), (-1, 4), (-3, 2)]:
        index = torch.arange(length)
        expected = torch.from_numpy(spread(index.numpy(), (2, 3, 4), dim % 3))
        assert torch.equal(broadcast(index, other, dim), expected)
    index = torch.arange(6).view(2, 3)
    assert torch.equal(broadcast(index, other, 1), index[:, :, None].expand(2, 3, 4))


def test_inputs_are_left_alone(scatter_module):
    src, index = torch.randn(6), torch.tensor([0, 1, 1, 0, 2, 2])
    before = src.clone(), index.clone()
    for reduce in REDUCES:
        scatter_module.scatter(src, index, reduce=reduce)
    assert torch.equal(src, before[0])
    assert torch.equal(index, before[1])


@pytest.mark.parametrize("scripted", [False, True])
def test_what_is_not_covered_names_the_package_to_install(scatter_module, scripted):
    prepare = torch.jit.script if scripted else lambda function: function
    raised = torch.jit.Error if scripted else MissingDependencyError
    src, index = torch.ones(2), torch.tensor([0, 1])
    with pytest.raises(raised, match="pip install torch-scatter"):
        prepare(scatter_module.scatter)(src, index, reduce="mul")
    with pytest.raises(raised, match="pip install torch-scatter"):
        prepare(scatter_module.segment_coo)(src, index, out=src)
    with pytest.raises(raised, match="pip install torch-scatter"):
        prepare(scatter_module.segment_csr)(src, index.view(1, 2))


def test_unknown_names_are_attribute_errors_that_name_the_package(scatter_module, sparse_module):
    for module, name, project in [
        (scatter_module, "scatter_softmax", "torch-scatter"),
        (scatter_module.utils, "gather", "torch-scatter"),
        (sparse_module, "matmul", "torch-sparse"),
        (sparse_module, "SparseStorage", "torch-sparse"),  # torch_geometric must not find it
    ]:
        assert not hasattr(module, name)
        with pytest.raises(AttributeError, match=f"pip install {project}"):
            getattr(module, name)
    assert "standin" in scatter_module.__version__
    assert "standin" in sparse_module.__version__


# -- SparseTensor ------------------------------------------------------------------------------------------------


def random_entries(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(0, 6, (25,), generator=generator)
    col = torch.randint(0, 4, (25,), generator=generator)
    return row, col, torch.randn(25, generator=generator, dtype=torch.float64)


def test_entries_are_sorted_and_duplicates_kept_in_order(sparse_module):
    row, col, value = random_entries(0)
    matrix = sparse_module.SparseTensor(row=row, col=col, value=value, sparse_sizes=(7, 4))
    triples = sorted(zip(row.tolist(), col.tolist(), range(25), strict=True))
    assert matrix.storage.row().tolist() == [triple[0] for triple in triples]
    assert matrix.storage.col().tolist() == [triple[1] for triple in triples]
    assert torch.equal(matrix.storage.value(), value[[triple[2] for triple in triples]])
    stored = (matrix.storage.row(), matrix.storage.col(), matrix.storage.value())
    assert all(torch.equal(mine, other) for mine, other in zip(matrix.coo(), stored, strict=True))
    assert matrix.sparse_sizes() == (7, 4)
    assert sparse_module.SparseTensor(row=row, col=col).sparse_sizes() == (int(row.max()) + 1, int(col.max()) + 1)


def test_rows_can_be_selected_with_repeats(sparse_module):
    row, col, value = random_entries(1)
    matrix = sparse_module.SparseTensor(row=row, col=col, value=value, sparse_sizes=(7, 4))
    index = torch.tensor([3, 6, 0, 3, 3, 5])
    chosen = matrix[index]
    assert chosen.sparse_sizes() == (6, 4)
    dense = coo_matrix((value.numpy(), (row.numpy(), col.numpy())), shape=(7, 4)).toarray()[index.numpy()]
    rows, cols, values = chosen.coo()
    assert (coo_matrix((values.numpy(), (rows.numpy(), cols.numpy())), shape=(6, 4)).toarray() == dense).all()
    assert len(values) == sum(int((row == i).sum()) for i in index)
    assert (rows.diff() >= 0).all()
    assert sparse_module.SparseTensor(row=row, col=col, sparse_sizes=(7, 4))[index].storage.value() is None


def test_row_sums(sparse_module):
    row, col, value = random_entries(2)
    matrix = sparse_module.SparseTensor(row=row, col=col, value=value, sparse_sizes=(7, 4))
    dense = coo_matrix((value.numpy(), (row.numpy(), col.numpy())), shape=(7, 4)).toarray()
    torch.testing.assert_close(matrix.sum(dim=1), torch.from_numpy(dense.sum(1)))
    counts = matrix.set_value(None).sum(dim=1)
    assert counts.tolist() == [int((row == i).sum()) for i in range(7)]
    assert counts.dtype == torch.get_default_dtype()
    assert matrix.storage.value() is not None


def test_values_can_be_replaced_in_place(sparse_module):
    row, col, value = random_entries(3)
    matrix = sparse_module.SparseTensor(row=row, col=col, value=value, sparse_sizes=(7, 4))
    new = torch.arange(25)
    assert matrix.set_value_(new, layout="coo") is matrix
    assert torch.equal(matrix.storage.value(), new)


def test_gradients_pass_through_the_values(sparse_module):
    row, col, value = random_entries(4)

    def function(values: torch.Tensor) -> torch.Tensor:
        matrix = sparse_module.SparseTensor(row=row, col=col, value=values, sparse_sizes=(7, 4))
        return matrix[torch.tensor([2, 2, 5])].sum(dim=1)

    assert torch.autograd.gradcheck(function, (value.requires_grad_(),))


def test_an_empty_matrix(sparse_module):
    none = torch.zeros(0, dtype=torch.int64)
    matrix = sparse_module.SparseTensor(row=none, col=none, value=none, sparse_sizes=(3, 3))
    assert matrix[torch.tensor([1, 1])].coo()[0].shape == (0,)
    assert matrix.set_value(None).sum(dim=1).tolist() == [0, 0, 0]
    assert sparse_module.SparseTensor(row=none, col=none).sparse_sizes() == (0, 0)


def test_it_can_be_used_inside_a_scripted_function(sparse_module):
    SparseTensor = sparse_module.SparseTensor

    def neighbours(row: torch.Tensor, col: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = SparseTensor(row=row, col=col, value=value, sparse_sizes=(7, 6))[col]
        return matrix.set_value(None).sum(dim=1), matrix.sum(dim=1)

    entries = random_entries(5)
    for scripted, eager in zip(torch.jit.script(neighbours)(*entries), neighbours(*entries), strict=True):
        assert torch.equal(scripted, eager)


def test_what_sparse_tensor_does_not_cover_names_the_package_to_install(sparse_module):
    row, col, value = random_entries(6)
    matrix = sparse_module.SparseTensor(row=row, col=col, value=value, sparse_sizes=(7, 4))
    message = "pip install torch-sparse"
    for function in (
        lambda: sparse_module.SparseTensor(rowptr=row, col=col),
        lambda: matrix[torch.tensor([True, False])],
        lambda: matrix[2],
        lambda: matrix.sum(dim=0),
        lambda: matrix.set_value(value, layout="csc"),
    ):
        with pytest.raises(MissingDependencyError, match=message):
            function()
    with pytest.raises(AttributeError, match=message):
        matrix.t()
    assert not hasattr(matrix, "to_dense")
