"""What test_attention_kernel.py runs in processes of their own: Triton decides when it is imported how kernels run.

With ``TRITON_INTERPRET=1`` they are interpreted on the CPU, else they run on the GPU.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from torch.nn import functional

from escaip_fairchem.errors import EScAIPError
from escaip_fairchem.nn import Systems
from escaip_fairchem.nn.attention import NeighborhoodAttention
from escaip_fairchem.nn.basis import angle_cosines
from escaip_fairchem.nn.fast import inference, mixing
from escaip_fairchem.nn.kernels.attention_fused import fused_attention
from escaip_fairchem.testing import batch, relative_error, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import assert_close, root_mean_square

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")

# Root mean square error, relative. Float32 has other orders of summation; halves round weights and results to 8 and 11
# bits, the interpreter toward zero.
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
# Slots, heads, width: powers of two and others, fewer than the least tile, the largest.
SHAPES = [(1, 1, 16), (5, 3, 32), (16, 2, 24), (20, 8, 64), (30, 2, 96), (64, 1, 128)]
COUNTS = [0.0, 1.0, 0.5, 0.8]  # shares of the slots that atoms use, at least one


class Case:
    """Random neighbourhoods, some slots empty, and their attention by PyTorch in float32."""

    def __init__(
        self, slots: int, heads: int, width: int, dtype: torch.dtype, *, angles: bool = True, dropout: float = 0.0
    ) -> None:
        features = heads * width
        self.heads = heads
        self.count = torch.tensor([max(1, round(share * slots)) for share in COUNTS], device=DEVICE)
        self.mask = torch.arange(slots, device=DEVICE) < self.count.unsqueeze(1)
        self.projected = self.random(len(COUNTS), slots, 3 * features).to(dtype).requires_grad_(True)
        self.direction = functional.normalize(self.random(len(COUNTS), slots, 3), dim=-1).requires_grad_(True)
        self.scale = torch.tensor(0.7, device=DEVICE, requires_grad=True) if angles else None
        # What follows attention never reads empty slots.
        self.upstream = self.random(len(COUNTS), slots, features).to(dtype) * self.mask.unsqueeze(-1)
        self.leaves = [leaf for leaf in (self.projected, self.direction, self.scale) if leaf is not None]
        self.attention = NeighborhoodAttention(
            features, heads, use_angles=False, dropout=dropout, implementation="math"
        )
        self.attention.angle_scale = self.scale

    @staticmethod
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(DEVICE)

    def fused(self, projected: torch.Tensor | None = None) -> torch.Tensor:
        projected = self.projected if projected is None else projected
        dropout = self.attention.active_dropout
        return fused_attention(projected, self.direction, self.count.int(), self.scale, self.heads, dropout)

    def plain(self) -> torch.Tensor:
        return self.attention.mix_projected(self.projected.float(), angle_cosines(self.direction), self.mask)

    def gradients(self, outputs: torch.Tensor, names=None) -> list[torch.Tensor]:
        return list(
            torch.autograd.grad(outputs, names or self.leaves, self.upstream.to(outputs.dtype), allow_unused=True)
        )


def error(actual: torch.Tensor, reference: torch.Tensor, *, floor: float = 1e-3) -> float:
    assert actual.shape == reference.shape
    return root_mean_square(actual.double() - reference.double()) / max(root_mean_square(reference), floor)


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_plain_one(shape, dtype):
    case = Case(*shape, dtype)
    outputs, reference = case.fused(), case.plain()
    assert outputs.dtype == dtype
    assert outputs.is_contiguous()
    assert error(outputs[case.mask], reference[case.mask]) < ERRORS[dtype]
    if dtype == torch.float32:
        assert relative_error(outputs[case.mask], reference[case.mask]) < 1e-5
    for actual, expected in zip(case.gradients(outputs), case.gradients(reference), strict=True):
        assert actual.dtype in (dtype, torch.float32)
        # Gradients are sums of terms of size 1 that may cancel.
        assert error(actual, expected, floor=1.0) < 2 * ERRORS[dtype]


def test_without_angles():
    case = Case(20, 2, 16, torch.float32, angles=False)
    with torch.no_grad():
        zero = NeighborhoodAttention(32, 2, use_angles=False, dropout=0.0, implementation="math")
        reference = zero.mix_projected(case.projected, angle_cosines(case.direction), case.mask)
    outputs = case.fused()
    assert_close(outputs[case.mask], reference[case.mask], "fused attention")
    projected_gradient, direction_gradient = case.gradients(outputs)
    assert projected_gradient.isfinite().all()
    assert direction_gradient is None


def test_unit_vectors_alone_and_not_at_all():
    """Training a direct model asks for no gradient of the unit vectors, inference of forces for none of the scale."""
    case = Case(20, 2, 16, torch.float32)
    expected = case.gradients(case.plain())
    case.direction.requires_grad_(False)
    for leaf, index in ((case.projected, 0), (case.scale, 2)):
        assert relative_error(case.gradients(case.fused(), [leaf])[0], expected[index]) < 1e-5
    case.direction.requires_grad_(True)
    case.projected.requires_grad_(False)
    case.scale.requires_grad_(False)
    assert relative_error(case.gradients(case.fused(), [case.direction])[0], expected[1]) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_nobody_looks_at_empty_slots(dropout):
    case = Case(20, 2, 16, torch.float32, dropout=dropout)
    empty = ~case.mask.unsqueeze(-1)
    torch.manual_seed(0)
    clean = case.fused()
    expected = case.gradients(clean)
    with torch.no_grad():
        case.projected.masked_fill_(empty, torch.nan)
        case.direction.masked_fill_(empty, torch.nan)
        case.upstream.masked_fill_(empty, torch.nan)
    torch.manual_seed(0)
    outputs = case.fused()
    assert torch.equal(outputs, clean)
    assert not outputs[~case.mask].any()
    for actual, reference in zip(case.gradients(outputs), expected, strict=True):
        assert torch.equal(actual, reference)
        if actual.dim():
            assert not actual[~case.mask].any()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_atom_without_any_slot_gets_zeros(dropout):
    """Padding of a batch to a fixed number of atoms."""
    case = Case(5, 2, 16, torch.float32, dropout=dropout)
    case.count[1] = 0
    outputs = case.fused()
    assert outputs.isfinite().all()
    assert not outputs[1].any()
    assert all(gradient.isfinite().all() for gradient in case.gradients(outputs))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_no_atoms(dropout):
    projected, direction = torch.zeros(0, 5, 96, device=DEVICE), torch.zeros(0, 5, 3, device=DEVICE)
    count = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    scale = torch.ones((), device=DEVICE, requires_grad=True)
    outputs = fused_attention(projected, direction, count, scale, 2, dropout)
    assert outputs.shape == (0, 5, 32)
    outputs.sum().backward()
    assert scale.grad == 0


@pytest.mark.parametrize("layout", ["part of a larger tensor", "slots before atoms", "features apart"])
def test_strides(layout):
    case = Case(20, 2, 16, torch.float32)
    expected = case.fused()
    if layout == "part of a larger tensor":
        strided = torch.full((8, 23, 101), torch.nan, device=DEVICE)[::2, 1:21, 3:99]
    elif layout == "slots before atoms":
        strided = torch.empty(20, 4, 96, device=DEVICE).transpose(0, 1)
    else:
        strided = torch.empty(4, 96, 20, device=DEVICE).transpose(1, 2)
    strided.copy_(case.projected.detach())
    assert not strided.is_contiguous()
    strided.requires_grad_(True)
    outputs = case.fused(strided)
    assert torch.equal(outputs, expected)
    # A sum over slots gives the kernel one row of gradients for all of them.
    (gradient,) = torch.autograd.grad(outputs.sum(1).square().sum(), strided)
    (reference,) = torch.autograd.grad(expected.sum(1).square().sum(), case.projected)
    assert torch.equal(gradient, reference)


def test_gradients_do_not_depend_on_the_order_of_programs():
    case = Case(20, 8, 16, torch.float32)
    first, second = (case.gradients(case.fused()) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_a_second_derivative_is_refused():
    case = Case(5, 2, 16, torch.float32)
    (gradient,) = torch.autograd.grad(case.fused().square().sum(), case.direction, create_graph=True)
    with pytest.raises(EScAIPError, match=r"no second derivative; set model\.backbone\.attention_kernel: torch"):
        gradient.square().sum().backward()


def test_it_is_a_well_behaved_operator():
    case = Case(5, 2, 16, torch.float32)
    seed = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for scale, dropout in ((case.scale, (None, 0.0)), (None, (None, 0.0)), (case.scale, (seed, 0.3))):
        arguments = (case.projected, case.direction, case.count.int(), scale, dropout[0], 2, dropout[1], False)
        torch.library.opcheck(torch.ops.escaip.attend, arguments)


# Whole models. Width 8 is padded to 16.

ZOO = [structures.disordered(1), structures.slab(), structures.isolated(8)]


@pytest.fixture
def uses(monkeypatch):
    """A list that grows with every use of the kernel."""
    calls: list[torch.dtype] = []

    def counted(projected, *arguments):
        calls.append(projected.dtype)
        return fused_attention(projected, *arguments)

    monkeypatch.setattr(mixing, "fused_attention", counted)
    return calls


def models(kind: str, **changes):
    """The same model by plain execution, and fast with the kernel."""
    plain = tiny_predictor(kind, dtype=torch.float32, execution="plain", **changes)
    fast = tiny_predictor(kind, dtype=torch.float32, attention_kernel="triton", **changes)
    fast.load_state_dict(plain.state_dict())
    return plain.to(DEVICE), fast.to(DEVICE)


def systems() -> Systems:
    cpu = batch(ZOO, torch.float32)
    moved = {name: value.to(DEVICE) for name, value in vars(cpu).items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(cpu, **moved)


def gradients(model) -> dict[str, torch.Tensor]:
    outputs = model(systems())
    generator = torch.Generator().manual_seed(0)
    sum(
        (value * torch.randn(value.shape, generator=generator).to(DEVICE)).sum() for _, value in sorted(outputs.items())
    ).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_predictions_of_a_model(kind, chunked, uses, monkeypatch):
    if chunked:
        monkeypatch.setitem(inference.CHUNK_VALUES, DEVICE.type, 60 * 16)
    plain, fast = models(kind)
    with torch.no_grad():
        expected, actual = plain(systems()), fast(systems())
    assert len(uses) > 2 if chunked and kind == "direct" else len(uses) == 2
    for name, reference in expected.items():
        assert_close(actual[name], reference, "same numbers", name)


def test_gradients_of_parameters(uses):
    plain, fast = models("direct")
    expected, actual = gradients(plain), gradients(fast)
    assert len(uses) == 2
    assert set(actual) == set(expected)
    for name, reference in expected.items():
        assert error(actual[name], reference, floor=0.1) < 1e-5, name  # terms that may cancel, as above


def test_training_on_conservative_forces_uses_pytorch(uses):
    plain, fast = models("conservative")
    expected, actual = gradients(plain), gradients(fast)
    assert not uses
    for name, reference in expected.items():
        assert error(actual[name], reference, floor=0.1) < 1e-5, name  # terms that may cancel, as above


def test_autocast_hands_halves_to_the_kernel(uses):
    plain, fast = models("direct")
    with torch.no_grad():
        expected = plain(systems())
        with torch.autocast(DEVICE.type, torch.bfloat16):
            actual = fast(systems())
    assert uses == [torch.bfloat16] * 2
    for name, reference in expected.items():
        assert_close(actual[name].float(), reference, "bf16", name)
