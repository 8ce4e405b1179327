"""Edge attributes and blocks, one edge at a time, from the equations of DESIGN §2."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.nn import build_graph
from escaip_fairchem.testing import batch, randomize, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import assert_close

ZOO = [structures.disordered(1, 3), structures.isolated(8), structures.molecule(2, 4)]


@pytest.fixture
def parts():
    predictor = tiny_predictor("direct", max_neighbors=6, node_direction_expansion_size=4)
    systems = batch(ZOO)
    graph = build_graph(systems, predictor.neighborhoods(systems))
    return predictor.backbone, graph, predictor.backbone.edge_features(graph)


def attribute_of_edge(module, graph, features, atom, slot):
    sender = int(graph.sender_NK[atom, slot])
    act = torch.nn.functional.gelu

    def embed(layer, inputs):
        return act(layer[0].weight @ inputs + layer[0].bias)

    return torch.cat(
        (
            embed(module.distance_embedding, features.radial_NKG[atom, slot]),
            embed(module.sender_orientation_embedding, features.order_NL[sender]),
            module.sender_element_embedding.weight[graph.numbers_N[sender]],
            embed(module.receiver_orientation_embedding, features.order_NL[atom]),
            module.receiver_element_embedding.weight[graph.numbers_N[atom]],
        )
    )


def slots(graph):
    return [(int(atom), int(slot)) for atom, slot in graph.mask_NK.nonzero()]


def test_edge_attributes_edge_by_edge(parts):
    backbone, graph, features = parts
    module = backbone.blocks[0].graph_attention.edge_attributes
    actual = module(graph, features)
    for atom, slot in slots(graph):
        assert_close(actual[atom, slot], attribute_of_edge(module, graph, features, atom, slot), "same numbers")


def test_each_layer_owns_its_edge_attributes(parts):
    backbone = parts[0]
    owners = [backbone.input_block, *(block.graph_attention for block in backbone.blocks)]
    embeddings = {id(owner.edge_attributes.sender_element_embedding.weight) for owner in owners}
    assert len(embeddings) == 3


def test_the_input_block_edge_by_edge(parts):
    backbone, graph, features = parts
    block = backbone.input_block
    state = block(graph, features)
    edges = {}
    for atom, slot in slots(graph):
        attribute = attribute_of_edge(block.edge_attributes, graph, features, atom, slot)
        edge = torch.nn.functional.gelu(block.edge_linear[0].weight @ attribute + block.edge_linear[0].bias)
        edges[atom, slot] = edge + block.ffn(block.ffn_norm(edge))
        assert_close(state.edge_NKH[atom, slot], block.edge_norm(edges[atom, slot]), "same numbers")
    for atom in range(len(graph.numbers_N)):
        own = torch.stack([edge for (receiver, _), edge in edges.items() if receiver == atom])
        assert_close(state.node_NH[atom], block.node_norm(own.mean(0)), "same numbers")


def test_an_attention_block_edge_by_edge(parts):
    backbone, graph, features = parts
    block, state = backbone.blocks[0], backbone.input_block(graph, features)
    layer = block.graph_attention
    normed = block.attention_norm(state.node_NH)
    messages = torch.zeros_like(state.edge_NKH)
    for atom, slot in slots(graph):
        sender = int(graph.sender_NK[atom, slot])
        attribute = attribute_of_edge(layer.edge_attributes, graph, features, atom, slot)
        pair = layer.node_linear(torch.cat((normed[sender], normed[atom])))
        messages[atom, slot] = layer.message_linear(torch.cat((layer.edge_linear(attribute), pair)))
    update = layer.attention(messages, features.cosines_NKK, graph.mask_NK)
    result = block(state, graph, features)
    for atom in range(len(graph.numbers_N)):
        used = graph.mask_NK[atom]
        node = state.node_NH[atom] + update[atom][used].mean(0)
        assert_close(result.node_NH[atom], node + block.node_ffn(block.node_norm(node)), "same numbers")
        edge = state.edge_NKH[atom][used] + update[atom][used]
        assert_close(result.edge_NKH[atom][used], edge + block.edge_ffn(block.edge_norm(edge)), "same numbers")


def test_the_backbone_joins_the_readouts_of_every_depth(parts):
    backbone, graph, features = parts
    states = [backbone.input_block(graph, features)]
    for block in backbone.blocks:
        states.append(block(states[-1], graph, features))
    reads = [read(state) for read, state in zip(backbone.readouts, states, strict=True)]
    assert len(reads) == 3
    result = backbone(graph)
    assert_close(result.node_NH, backbone.node_projection([read.node_NH for read in reads]), "same numbers")
    assert_close(result.edge_NKH, backbone.edge_projection([read.edge_NKH for read in reads]), "same numbers")


def test_empty_slots_have_no_radial_basis(parts):
    _, graph, features = parts
    assert not features.radial_NKG[~graph.edge_mask_NK].any()
    assert features.radial_NKG[graph.edge_mask_NK].sum(-1).min() > 0.1


def test_without_edge_stream_nothing_that_only_feeds_it_is_built():
    energy_only, direct = tiny_predictor("energy"), tiny_predictor("direct")
    names = {name for name, _ in energy_only.backbone.named_parameters()}
    assert not [
        name
        for name in names
        if "edge_ffn" in name or "edge_norm" in name or "edge_projection" in name or ".edge." in name
    ]
    assert names < {name for name, _ in direct.backbone.named_parameters()}


def test_the_node_features_do_not_depend_on_the_edge_stream():
    without, with_edges = tiny_predictor("conservative"), tiny_predictor("direct")
    without.load_state_dict(with_edges.state_dict(), strict=False)
    systems = batch(ZOO)
    assert_close(without(systems)["energy"], with_edges(systems)["energy"], "same numbers")


def test_stochastic_depth_acts_on_every_residual_branch_of_a_block(parts):
    """Almost always dropped, nothing is left of a block but its residual path."""
    backbone, graph, features = parts
    block = backbone.blocks[0].train()
    block.stochastic_depth.probability = 1 - 1e-12
    state = backbone.input_block(graph, features)
    result = block(state, graph, features)
    assert torch.equal(result.node_NH, state.node_NH)
    assert torch.equal(result.edge_NKH, state.edge_NKH)


def test_randomize_reaches_every_parameter():
    predictor = tiny_predictor("equivariant rank-2")
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    randomize(predictor, 1)
    for name, value in predictor.named_parameters():
        assert not torch.equal(value, before[name]), name
