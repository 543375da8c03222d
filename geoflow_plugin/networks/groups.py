r"""Finite groups that act on flattened points, and how to write them down.

An element g is an index permutation p, :math:`(g x)_i = x_{p_i}`; a pair (permutation,
signs), :math:`(g x)_i = s_i x_{p_i}`; or an orthogonal matrix, :math:`g x`. A group is the
sequence of all its elements.
"""

import itertools

import numpy as np
import torch

from geoflow_plugin.geometry.checks import check_counts

__all__ = ["as_elements", "check_group", "cyclic", "generate", "permutations", "sign_flip"]


def generate(generators, max_order=10_000):
    """All elements of the group that some elements generate.

    Parameters
    ----------
    generators : sequence
        As the ``group`` of ``SymmetricPotential``.
    max_order : int
        Where to give up.

    Returns
    -------
    group : torch.Tensor or list
        Permutations (order, dim) or matrices (order, dim, dim); pairs if there are signs.

    Raises
    ------
    TypeError, ValueError
        For what is no element, or a group that has more than ``max_order``.
    """
    check_counts(max_order=max_order)
    elements = _generated(as_elements(generators, "generators"), max_order)
    if len(elements) > max_order:
        raise ValueError(
            f"generators: expected those of a group of at most max_order={max_order} "
            "elements, got more."
        )
    if elements.ndim == 3:
        return elements
    if bool((elements > 0).all()):
        return elements - 1
    return list(zip(elements.abs() - 1, elements.sign(), strict=True))


def permutations(n, size=1):
    """All n! permutations of n blocks of ``size`` coordinates, (n!, n * size).

    Exchanges n particles in ``size`` dimensions; ten at most.
    """
    check_counts(n=n, size=size)
    if n > 10:
        raise ValueError(f"n: expected 10 blocks at most, whose orders are 10!, got {n}.")
    blocks = torch.arange(n * size).reshape(n, size)
    orders = torch.tensor(list(itertools.permutations(range(n))))
    return blocks[orders].flatten(1)


def cyclic(n):
    """The n rotations of n coordinates on a ring, (n, n)."""
    check_counts(n=n)
    ring = torch.arange(n)
    return (ring + ring.unsqueeze(1)) % n


def sign_flip(dim):
    """The identity and x -> -x."""
    check_counts(dim=dim)
    identity, ones = torch.arange(dim), torch.ones(dim, dtype=torch.int64)
    return [(identity, ones), (identity, -ones)]


# Elements are rows s_i (p_i + 1) of signed indices that count from one, or matrices


def as_elements(group, name):
    """Elements as signed indices (order, dim), or as matrices (order, dim, dim)."""
    try:
        elements = [_as_element(g) for g in group]
        if not elements:
            raise ValueError("got none")
        if any(g.ndim == 2 for g in elements):
            elements = [_as_matrix(g) for g in elements]
        if len({g.shape for g in elements}) > 1:
            raise ValueError(
                f"got some of {sorted({g.shape[-1] for g in elements})} coordinates"
            )
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name}: expected permutations, pairs (permutation, signs) or orthogonal "
            f"matrices, all of one size; {error}."
        ) from error
    return torch.stack(elements)


def _as_element(g):
    if isinstance(g, tuple) and len(g) == 2 and _as_tensor(g[0]).ndim == 1:
        permutation, signs = (_as_tensor(part) for part in g)
        if signs.shape != permutation.shape or not bool((signs.abs() == 1).all()):
            raise ValueError(f"got signs {signs.tolist()}")
        return _as_element(permutation) * signs.long()
    g = _as_tensor(g)
    if g.is_complex() or g.dtype == torch.bool:
        raise TypeError(f"got numbers of {g.dtype}")
    if g.ndim == 2 and g.shape[0] == g.shape[1]:
        g = g.double()
        if not bool(((g @ g.mT - torch.eye(len(g)).to(g)).abs() < 1e-5).all()):
            raise ValueError(f"got the matrix {g.tolist()}, which is not orthogonal")
        left, _, right = torch.linalg.svd(g)
        return left @ right  # the nearest one: float32 is not orthogonal enough
    if g.ndim != 1 or g.is_floating_point() or g.sort().values.tolist() != list(range(len(g))):
        raise ValueError(f"got {g.tolist()}")
    return g.long() + 1


def _as_tensor(g):
    """On the CPU; by way of NumPy, whose floats do not depend on torch's default dtype."""
    return g.detach().cpu() if isinstance(g, torch.Tensor) else torch.from_numpy(np.array(g))


def _as_matrix(g):
    if g.ndim == 2:
        return g
    matrix = torch.zeros(len(g), len(g), dtype=torch.float64)
    return matrix.scatter(1, (g.abs() - 1).unsqueeze(1), g.sign().double().unsqueeze(1))


def _product(elements, g):
    """The elements h g, first g and then h."""
    if g.ndim == 2:
        return elements @ g
    return elements.sign() * g[elements.abs() - 1]


def _missing(elements, candidates):
    """Which of the candidates are none of the elements."""
    if elements.ndim == 3:
        overlap = candidates.flatten(1) @ elements.flatten(1).mT
        return elements.shape[-1] - overlap.amax(1) > 1e-9  # half a squared distance
    known = {row.tobytes() for row in elements.numpy()}
    return torch.tensor([row.tobytes() not in known for row in candidates.numpy()])


def _generated(generators, max_order):
    """The group, or more than ``max_order`` of its elements; the identity comes first."""
    identity = torch.arange(1, generators.shape[-1] + 1)
    elements = (_as_matrix(identity) if generators.ndim == 3 else identity).unsqueeze(0)
    used: list[torch.Tensor] = []
    while len(elements) <= max_order:
        missing = _missing(elements, generators)
        if not missing.any():
            break
        used.append(generators[missing][0])
        # Dimino's algorithm: the larger group is a union of cosets H r of this one
        subgroup, representatives = elements, [elements[0]]
        for representative in representatives:  # the list grows
            for g in used:
                candidate = _product(representative.unsqueeze(0), g)
                if _missing(elements, candidate) and len(elements) <= max_order:
                    representatives.append(candidate[0])
                    elements = torch.cat([elements, _product(subgroup, candidate[0])])
    return elements


def check_group(elements):
    """Refuse what is not all of a group, each element once."""
    order = len(elements)
    generated = _generated(elements, order)
    if len(generated) > order:
        lacks = "the identity" if _missing(elements, generated[:1]) else "some products"
        raise ValueError(
            f"group: expected all elements of a group, got {order} without {lacks}; "
            "generate(group) completes them."
        )
    if len(generated) < order:
        raise ValueError(
            f"group: expected each element once, got {order} of which "
            f"{len(generated)} are different."
        )
