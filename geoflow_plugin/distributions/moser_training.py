"""How a Moser flow learns: its field alone, against nodes that stand for the normaliser."""

import torch

from geoflow_plugin.distributions.base import takes_context
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.networks.context import context_dim_of
from geoflow_plugin.training import generator_at, processes

__all__ = ["training_problem"]

_CONTEXTS = 128  # held-out ones whose normalisers are taken at every check


def training_problem(flow, train, held_out, generator):
    """As ``Flow._training_problem``: only the field is trained.

    What the base says of the data is kept, where it does not depend on contexts.
    """
    flow._place_base(train.points)
    anchors = None
    if hasattr(flow.field, "initialize"):
        listens = context_dim_of(flow.field) and train.context is not None
        given = {"context": train.context} if listens else {}
        anchors = flow.field.initialize(train.points, generator, **given)
        if not isinstance(flow.base, Uniform):
            flow.field.scaled_charge.data.zero_()  # start from the base itself
    field_listens = context_dim_of(flow.field) != 0
    listens = flow.conditional and train.context is not None
    base_listens = listens and takes_context(flow.base)
    base_terms = pool = None
    if not base_listens:
        base_terms = train.tabulate(lambda x: flow._base_terms(x, leave_out=True))
    if not (base_listens or isinstance(flow.base, Uniform)):
        pool = flow._training_nodes(4096, _generator_on(flow.device, generator))
    if held_out is not None:
        held_out_terms = flow._base_terms(*_columns(held_out), leave_out=False)
    seed = int(torch.randint(2**31, (), generator=generator))

    def loss(rows, step):
        rows = rows.to(flow.device)
        points, given = train.rows(rows)
        if base_terms is None:
            log_prob, base_score = flow._base_terms(points, **given, leave_out=True)
        else:
            log_prob, base_score = base_terms(rows, points)
        draws = generator_at(flow.device, seed, step)  # in every process the same
        n_nodes = max(256, processes.count() * len(rows) // 2)
        context = node_context = None
        if listens:
            index = torch.randint(
                len(train.context), (n_nodes,), generator=draws, device=flow.device
            )
            node_context = train.context[index]
            context = torch.cat([given["context"], node_context])
        if pool is None:
            nodes, node_score = flow._training_nodes(n_nodes, draws, node_context)
        else:
            index = torch.randint(
                len(pool[0]), (n_nodes,), generator=draws, device=flow.device
            )
            nodes, node_score = pool[0][index], pool[1][index]
        own_ratio = log_prob.new_zeros(len(rows))
        if anchors is not None:
            # leave out of each point's density the sources that stand on it
            places = [train.context[anchors]] if listens and field_listens else []
            own = flow.field.own_ratio(train.points[anchors], *places)
            at, source = train.coincidences(rows, points, anchors)
            own_ratio = own_ratio.index_add(0, at, own[source])
        relative = flow._relative_log_prob(
            points, base_score, nodes, node_score, own_ratio, context
        )
        return -(log_prob + relative).mean()

    def validate():
        if listens:  # normalisers of contexts' own, of the same ones at every check
            some = held_out.context[:_CONTEXTS]
            values = flow._conditional_normalizer.estimate(some, n_rounds=1)
            log_normalizer = values[:, 0].log().mean()
        else:
            outside = flow._ratio_at(*flow._normalizer.nodes(0))
            normalizer = 1 + (flow._positive_part(outside) - outside).mean()
            log_normalizer = normalizer.log()
        log_prob, base_score = held_out_terms
        points, *context = _columns(held_out)
        inside = flow._positive_part(flow._ratio_at(points, base_score, *context))
        return float(log_normalizer - (log_prob + inside.log()).mean())

    return flow.field, loss, validate


def _generator_on(device, generator):
    """A generator on a device, seeded by the next draw of another."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def _columns(data):
    """Points, and contexts if there are any."""
    return (data.points,) if data.context is None else tuple(data)
