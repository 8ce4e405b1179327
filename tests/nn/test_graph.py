"""Systems and graphs: the geometry of edges, isolated atoms, refusals."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.errors import DataError
from escaip_fairchem.nn import Neighborhoods, Systems, build_graph
from escaip_fairchem.nn.graph import edge_vectors
from escaip_fairchem.nn.systems import ElementError, structure_mean, structure_sum
from escaip_fairchem.testing import batch, structures, tiny_predictor


def systems_by_hand(numbers=(1, 8, 29)):
    return Systems(
        positions_N3=torch.tensor([[0.0, 0, 0], [3.0, 0, 0], [5.0, 5, 5]], dtype=torch.float64),
        cell_B33=torch.stack((4.0 * torch.eye(3), torch.zeros(3, 3))).double(),
        pbc_B3=torch.tensor([[True] * 3, [False] * 3]),
        numbers_N=torch.tensor(numbers),
        structure_N=torch.tensor([0, 0, 1]),
    )


def neighborhoods_by_hand():
    return Neighborhoods(
        sender_NK=torch.tensor([[1, 1, 0], [0, 1, 1], [2, 2, 2]]),
        shift_NK3=torch.tensor([[[-1, 0, 0], [0, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 0], [0, 0, 0]], [[0] * 3] * 3]),
        mask_NK=torch.tensor([[True, True, True], [True, False, False], [False, False, False]]),
    )


def test_vectors_point_from_sender_to_receiver_by_hand():
    vectors = edge_vectors(systems_by_hand(), neighborhoods_by_hand())
    # Receiver 0 at the origin, sender 1 at x = 3 in the image −1, so at x = −1: the vector is +x.
    assert vectors[0].tolist() == [[1, 0, 0], [-3, 0, 0], [0, -4, 0]]
    assert vectors[1, 0].tolist() == [-1, 0, 0]


def test_graph_by_hand():
    graph = build_graph(systems_by_hand(), neighborhoods_by_hand())
    assert graph.num_structures == 2
    assert graph.distance_NK.tolist() == [[1, 3, 4], [1, 0, 0], [0, 0, 0]]
    assert graph.direction_NK3[0].tolist() == [[1, 0, 0], [-1, 0, 0], [0, -1, 0]]
    assert graph.edge_mask_NK.tolist() == neighborhoods_by_hand().mask_NK.tolist()
    # The isolated atom holds itself in one slot, in the direction (1, 0, 0).
    assert graph.mask_NK.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert graph.direction_NK3[2, 0].tolist() == [1, 0, 0]
    assert graph.sender_NK[2, 0] == 2
    assert torch.allclose(graph.direction_NK3.norm(dim=-1), torch.ones(3, 3, dtype=torch.float64))


def test_the_gradient_of_the_geometry_is_finite_with_empty_slots():
    systems = systems_by_hand()
    positions = systems.positions_N3.requires_grad_(True)
    graph = build_graph(systems.with_geometry(positions, systems.cell_B33), neighborhoods_by_hand())
    (graph.distance_NK.sum() + graph.direction_NK3.square().sum()).backward()
    assert positions.grad.isfinite().all()
    assert not positions.grad[2].any()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 94, 29), "structure 0 of the batch: atomic number 94 needs max_num_elements ≥ 95, the model has 90"),
        ((1, 8, 90), "structure 1 of the batch: atomic number 90 needs max_num_elements ≥ 91, the model has 90"),
        ((-3, 8, 1), "structure 0 of the batch: atomic number -3 is no atomic number"),
    ],
)
def test_elements_outside_the_embeddings_are_named(numbers, message):
    with pytest.raises(ElementError) as caught:
        systems_by_hand(numbers).check_elements(90)
    assert str(caught.value) == message
    assert isinstance(caught.value, DataError)
    assert caught.value.structure == int(message.split()[1])


def test_the_largest_allowed_element_passes():
    systems_by_hand((0, 8, 89)).check_elements(90)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_positions_that_are_not_finite_are_named(value):
    broken = structures.molecule()
    positions = broken.positions.clone()
    positions[2, 1] = value
    with pytest.raises(DataError, match="structure 1 of the batch: atom 2"):
        tiny_predictor("direct")(batch([structures.copper(), broken.replaced(positions=positions)]))


def test_reductions_by_hand():
    values, rows = torch.tensor([[1.0], [3.0], [10.0]]), torch.tensor([0, 0, 2])
    assert structure_sum(values, rows, 3).tolist() == [[4.0], [0.0], [10.0]]
    assert structure_mean(values, rows, 3).tolist() == [[2.0], [0.0], [10.0]]
