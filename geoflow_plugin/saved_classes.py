"""What of this package, torch and normflows files may hold, and what makes it again.

Networks come back as they were, attributes and tensors; whatever lives on a space and can
be wrong about it, through its constructor.
"""

import importlib
import pkgutil

import normflows
from normflows.flows.mixing import _LinearCache
from torch import nn

from geoflow_plugin import distributions, layers, networks
from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.conditional_kernels import ConditionalKernelMixture
from geoflow_plugin.distributions.flow import Flow
from geoflow_plugin.distributions.free_form import FreeFormInjectiveFlow
from geoflow_plugin.distributions.injective import InjectiveFlow
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.lattice_normal import LatticeNormal
from geoflow_plugin.distributions.low_rank_normal import LowRankNormal
from geoflow_plugin.distributions.monge_ampere import MongeAmpereFlow
from geoflow_plugin.distributions.moser import MoserFlow
from geoflow_plugin.distributions.reverse_kl import FreeEnergy
from geoflow_plugin.layers.embedding import Reshape
from geoflow_plugin.persistence.kinds import CONSTRUCTED, STATE
from geoflow_plugin.persistence.registry import (
    named_arguments,
    register_arguments,
    register_kind,
    register_library,
    register_saved,
)

for _room in (distributions, layers, networks):
    for _found in pkgutil.iter_modules(_room.__path__, f"{_room.__name__}."):
        for _cls in list(vars(importlib.import_module(_found.name)).values()):
            if isinstance(_cls, type) and _cls.__module__ == _found.name:
                if issubclass(_cls, nn.Module):
                    register_saved(_cls)

register_library("torch.nn.modules", nn.Module)
for _library in ("core", "distributions", "flows", "nets", "utils.nn"):
    register_library(f"{normflows.__name__}.{_library}", nn.Module)
register_saved(_LinearCache, arguments=lambda cache: {})  # filled when it is asked
register_saved(FreeEnergy, arguments=FreeEnergy._asdict)

for _cls in (
    Distribution,
    layers.Chart,
    layers.Logit,
    layers.MongeAmpere,
    layers.MoserTransport,
    Reshape,
):
    register_kind(_cls, CONSTRUCTED)
STATE |= {
    Distribution: ("context_dim",),
    Flow: ("_places_base",),
    KernelDensity: ("kernels",),
}


def _moser(flow):
    return named_arguments(flow, without=("context_dim",))  # the field knows


def _layer(layer):
    # the potential has the symmetry, and knows its context
    return named_arguments(layer, without=("symmetry", "dtype", "context_dim"))


def _monge_ampere(flow):
    return _layer(flow.layer) | {"space": flow.space, "base": flow.base}


def _injective(flow, *without):
    found = named_arguments(flow, without=("ambient_dim", "space", "dim", *without))
    return {"ambient_dim": flow.space, "space": flow.latent_space, **found}


def _free_form(flow):
    own = {"encoder": flow.embedding.encoder, "decoder": flow.embedding.decoder}
    return _injective(flow, *own) | own


def _lattice_normal(law):
    side, lattice_dim = law.lattice[0], len(law.lattice)
    return {"space": law.space, "side": side, "lattice_dim": lattice_dim, "dtype": law.dtype}


def _conditional_kernels(mixture):
    kernels = mixture.kernels
    shared = kernels.weights if kernels.weights.ndim == 1 else kernels.weights[:, 0]
    return {
        "space": mixture.space,
        "centers": kernels.centers,
        "bandwidths": kernels.bandwidths,
        "weights": shared,
        "log_shares": mixture.log_shares,
        "context_dim": mixture.context_dim,
        "uniform": kernels.uniform,
    }


def _low_rank_normal(law):
    return {"space": law.space, "rank": law.factor.shape[1], "dtype": law.dtype}


# What made them, where attributes of the same names do not say it
for _cls, _arguments in {
    layers.MongeAmpere: _layer,
    MoserFlow: _moser,
    MongeAmpereFlow: _monge_ampere,
    InjectiveFlow: _injective,
    FreeFormInjectiveFlow: _free_form,
    LatticeNormal: _lattice_normal,
    LowRankNormal: _low_rank_normal,
    ConditionalKernelMixture: _conditional_kernels,
}.items():
    register_arguments(_cls, _arguments)
