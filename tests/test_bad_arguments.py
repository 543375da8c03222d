"""Every argument of every public name, and what it refuses by that name.

Further values for points, spaces, sizes of samples and ``fit`` are in ``test_bad_input.py``.
"""

import importlib
import inspect
import math
import random
import re
import signal

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from conftest import make_space
from geomstats.geometry.euclidean import Euclidean

import geoflow_plugin as gf
from geoflow_plugin import datasets, layers, networks, plotting, targets, testing

NAN, INF = math.nan, math.inf
COUNT = [0, -1, True, 1.5, "3"]
LENGTH = [0.0, -1.0, NAN, INF, "wide", 1j]
SEED = [1.5, "seed", True]
GENERATOR = [3, "seed", np.random.default_rng(0)]
DTYPE = ["float32", torch.int64, torch.complex64, 3]
DIM = [-1, True, 1.5, "3"]  # of a context, where zero is none
SHAPE = [(), (0,), (-3,), (1.5,), "3", 3, None]
SPACE = ["sphere", None, 3]
PATH = [3, None, 1.5]

SPHERE, PLANE, R3 = make_space("S2"), Euclidean(2), make_space("R3")
MESH = gf.spaces.MeshSurface(
    [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]],
)
FIXED = torch.Generator().manual_seed(0)
X = torch.nn.functional.normalize(torch.randn(20, 3, generator=FIXED), dim=1)
FLAT = torch.randn(20, 3, generator=FIXED)
GIVEN = torch.randn(20, 2, generator=FIXED)
BAD_POINTS = [2 * X, X[:, :2], X.long(), X[0], None, "points", X[:0], NAN * X]
BAD_CONTEXT = [GIVEN[:5], GIVEN[:, 0], NAN * GIVEN, "given", GIVEN * 1j]
NORMAL = gf.WrappedNormal(SPHERE, dtype=torch.float32)
CONDITIONAL = gf.ConditionalWrappedNormal(SPHERE, 2, dtype=torch.float32)


class Field(torch.nn.Module):
    """A field, or a network of anything."""

    def forward(self, x):
        return x.sin().flip(0)


def injective(**options):
    return gf.InjectiveFlow(**({"ambient_dim": 3, "dim": 2, "high_layers": ()} | options))


INJECTIVE = injective().float()
CODERS = {"ambient_dim": 3, "dim": 2, "encoder": torch.nn.Linear(3, 2)}
CODERS["decoder"] = torch.nn.Linear(2, 3)


DEFAULT = {
    "distribution": "monge_ampere",
    "distribution_params": {"n_steps": 1, "potential": Field()},
    "max_steps": 1,
}


def fitted(**options):
    method = options.pop("method", "fit")
    y = options.pop("X", X[:20])
    density = gf.FlowDensity(**({"space": SPHERE, "random_state": 0, **DEFAULT} | options))
    return getattr(density, method)(y)


def estimator(**options):
    method = getattr(ESTIMATOR, options.pop("method"))
    return method(options["X"]) if "X" in options else method(**options)


ESTIMATOR = fitted(distribution="uniform", distribution_params=None, X=X.double().numpy())


def plain():
    potential = networks.OneHiddenLayerPotential(3, 2, generator=FIXED)
    return gf.MongeAmpereFlow(SPHERE, potential=potential, n_steps=1)


def trained(**options):
    options = {"X": X, "max_steps": 1, "progress": False} | options
    return plain().fit(options.pop("X"), **options)


def trained_on_target(**options):
    options = {"target": lambda x: x[:, 0], "max_steps": 1, "progress": False} | options
    return plain().fit_target(**options)


def stump(inliers=FLAT, outliers=FLAT + 1, method="fit"):
    fit = gf.OutlierStump(INJECTIVE, ["log_prob"]).fit(FLAT, FLAT + 3)
    return getattr(fit, method)(inliers, outliers)


OPTIONS = {
    "max_steps": COUNT,
    "batch_size": [*COUNT, None],
    "learning_rate": [*LENGTH, None],
    "seed": SEED,
    "device": ["nowhere", 3],
    "checkpoint": [3, "no/such/folder/file", "."],
    "resume": [1, "yes", True],
    "callback": [3, "show"],
}
# a name: what is called, arguments that are fine, and bad values of each
TABLE = {
    "AtContext": (
        gf.AtContext,
        {"distribution": CONDITIONAL, "context": GIVEN[0]},
        {
            "distribution": [NORMAL, None, "normal"],
            "context": [GIVEN, GIVEN[0, :1], NAN * GIVEN[0], "given", None],
        },
    ),
    "ConditionalKernelDensity": (
        gf.ConditionalKernelDensity,
        {"space": SPHERE},
        {"space": SPACE, "bandwidth": [*LENGTH, []], "dtype": DTYPE},
    ),
    "ConditionalKernelDensity.fit": (
        gf.ConditionalKernelDensity(SPHERE).fit,
        {"X": X, "context": GIVEN},
        {"X": BAD_POINTS, "context": [*BAD_CONTEXT, None], "seed": SEED},
    ),
    "ConditionalWrappedNormal": (
        gf.ConditionalWrappedNormal,
        {"space": SPHERE, "context_dim": 2},
        {
            "space": SPACE,
            "context_dim": [*COUNT, None],
            "encoder": [3, "mlp", lambda c: c],
            "dtype": DTYPE,
        },
    ),
    "ConditionalWrappedNormal.log_prob": (
        CONDITIONAL.log_prob,
        {"x": X, "context": GIVEN},
        {"x": BAD_POINTS, "context": [*BAD_CONTEXT, None, GIVEN[:, :1]]},
    ),
    "ConditionalWrappedNormal.sample": (
        CONDITIONAL.sample,
        {"num_samples": 20, "context": GIVEN},
        {
            "num_samples": [-1, True, 1.5, "3", None],
            "context": [*BAD_CONTEXT, None],
            "generator": GENERATOR,
        },
    ),
    "Distribution": (gf.Distribution, {"space": SPHERE}, {"space": SPACE, "dtype": DTYPE}),
    "Distribution.log_prob": (
        NORMAL.log_prob,
        {"x": X},
        {"x": BAD_POINTS, "context": [GIVEN]},
    ),
    "Distribution.save": (NORMAL.save, None, {"path": PATH}),
    "Flow": (gf.Flow, {"space": SPHERE}, {"space": SPACE, "dtype": DTYPE}),
    "Flow.fit": (
        trained,
        {},
        OPTIONS
        | {
            "X": BAD_POINTS,
            "validation": [1.0, -0.1, NAN, "some", True, 2 * X],
            "context": [GIVEN],
            "patience": COUNT,
        },
    ),
    "Flow.fit_target": (
        trained_on_target,
        None,
        OPTIONS | {"target": [3, None, "target", lambda x: x, lambda x: 0.0]},
    ),
    "FlowDensity": (
        fitted,
        {},
        {
            "space": ["sphere", 3],
            "distribution": ["gauss", None, 3, int],
            "distribution_params": [3, "scale", [1]],
            "max_steps": COUNT,
            "batch_size": [*COUNT, None],
            "learning_rate": [*LENGTH, None],
            "validation": [1.0, -0.1, NAN, "some"],
            "patience": COUNT,
            "random_state": [1.5, "seed", -1],
            "device": ["nowhere", 3],
            "dtype": ["float16", "int64", torch.int64, 3],
        },
    ),
    "FlowDensity.fit": (fitted, {}, {"X": [2 * X, X[:, :2], NAN * X]}),
    "FlowDensity.sample": (
        lambda **options: estimator(method="sample", **options),
        {"random_state": 0},
        {"n_samples": [-1, 1.5, "3", None, True], "random_state": [1.5, "seed", -1]},
    ),
    "FlowDensity.score_samples": (
        lambda X: estimator(method="score_samples", X=X),
        {"X": X},
        {"X": [2 * X, X[:, :2], NAN * X]},
    ),
    "FreeFormInjectiveFlow": (
        lambda **options: gf.FreeFormInjectiveFlow(**(CODERS | options)),
        {},
        {
            "ambient_dim": [*COUNT, None, SPHERE, 1],
            "space": ["sphere", 3],
            "base": ["uniform", 3, Field(), NORMAL],
            "low_layers": [3, [3], "layers", Field()],
            "dim": [*COUNT, None],
            "encoder": [3, lambda x: x],
            "decoder": [3, lambda x: x],
            "reconstruction_weight": [-1, NAN, INF, "much", None],
            "n_probes": COUNT,
        },
    ),
    "InjectiveFlow": (
        injective,
        {},
        {
            "ambient_dim": [*COUNT, None, SPHERE, 1],
            "space": ["sphere", 3],
            "base": ["uniform", 3, Field(), NORMAL],
            "low_layers": [3, [3], "layers", Field()],
            "high_layers": [3, [3], "layers", Field()],
            "dim": [*COUNT, None],
            "method": ["fast", None, 3],
            "reconstruction_weight": [-1, NAN, INF, "much", None],
            "embedding": [3, Field(), layers.Embedding(1, 3)],
            "n_probes": COUNT,
        },
    ),
    "InjectiveFlow.decode": (
        INJECTIVE.decode,
        {"z": FLAT[:, :2]},
        {"z": [FLAT, FLAT[0, :2], NAN * FLAT[:, :2], None], "context": [GIVEN]},
    ),
    "InjectiveFlow.encode": (
        INJECTIVE.encode,
        {"x": FLAT},
        {"x": [FLAT[:, :2], FLAT[0], NAN * FLAT, None], "context": [GIVEN]},
    ),
    "InjectiveFlow.fit_in_two_steps": (
        lambda **options: injective().fit_in_two_steps(FLAT, **options),
        None,
        {"checkpoint": ["file"], "max_steps": COUNT, "patience": COUNT},
    ),
    "KernelDensity": (
        gf.KernelDensity,
        {"space": SPHERE},
        {"space": SPACE, "bandwidth": [*LENGTH, []], "dtype": DTYPE},
    ),
    "KernelDensity.fit": (
        gf.KernelDensity(SPHERE).fit,
        {"X": X},
        {"X": BAD_POINTS, "seed": SEED},
    ),
    "LatticeNormal": (
        gf.LatticeNormal,
        {"space": Euclidean(9), "side": 3},
        {
            "space": [*SPACE, R3],
            "side": [*COUNT, None],
            "lattice_dim": [*COUNT, None],
            "dtype": DTYPE,
        },
    ),
    "LowRankNormal": (
        gf.LowRankNormal,
        {"space": R3, "rank": 2},
        {"space": [*SPACE, make_space("SO3")], "rank": [*COUNT, None, 3], "dtype": DTYPE},
    ),
    "LowRankNormal.fit": (
        gf.LowRankNormal(R3, 1).fit,
        {"X": FLAT},
        {"X": [FLAT[:3], 0 * FLAT, NAN * FLAT, FLAT[:, :2], None]},
    ),
    "Mixture": (
        gf.Mixture,
        {"space": SPHERE, "components": [NORMAL, NORMAL]},
        {
            "space": SPACE,
            "components": [[], None, 3, ["uniform"]],
            "weights": [[1.0], [1.0, -1.0], [1.0, NAN], "ab", 3],
        },
    ),
    "Mixture.fit": (
        gf.Mixture(SPHERE, [NORMAL, gf.Uniform(SPHERE, torch.float32)]).fit,
        {"X": X},
        {"X": BAD_POINTS, "n_iterations": [*COUNT, None], "context": [GIVEN]},
    ),
    "MongeAmpereFlow": (
        gf.MongeAmpereFlow,
        {"space": SPHERE, "potential": Field()},
        {
            "space": SPACE,
            "base": ["uniform", 3, Field()],
            "potential": ["mlp", 3, lambda x: x],
            "n_steps": [*COUNT, None],
            "step_size": [*LENGTH, None],
            "symmetry": [3, [[0, 0, 1]], []],
            "solver": ["euler", None, 3],
            "context_dim": [*DIM, None],
        },
    ),
    "MoserFlow": (
        gf.MoserFlow,
        {"space": SPHERE},
        {
            "space": SPACE,
            "base": ["uniform", 3, Field()],
            "field": ["mlp", 3, lambda x: x],
            "floor": [0, 1, NAN, "small", None],
            "normalizer_tolerance": [0, 1, NAN, "small", None],
            "context_dim": [*DIM, None],
        },
    ),
    "MoserFlow.sample_with_count": (
        gf.MoserFlow(SPHERE, field=Field()).sample_with_count,
        None,
        {"n": [-1, True, 1.5, "3", None], "generator": GENERATOR},
    ),
    "OutlierStump": (
        gf.OutlierStump,
        {"flow": INJECTIVE},
        {"flow": [None, 3, NORMAL], "scores": [(), ["likelihood"], "log_prob", None, 3]},
    ),
    "OutlierStump.fit": (
        stump,
        {},
        {
            "inliers": [FLAT[:0], NAN * FLAT, None, FLAT[:, :2]],
            "outliers": [FLAT[:0], NAN * FLAT, None],
        },
    ),
    "OutlierStump.accuracy": (
        lambda **points: stump(**points, method="accuracy"),
        {},
        {"inliers": [FLAT[:0], NAN * FLAT, None], "outliers": [FLAT[:0], NAN * FLAT, None]},
    ),
    "OutlierStump.predict": (
        gf.OutlierStump(INJECTIVE, ["log_prob"]).fit(FLAT, FLAT + 3).predict,
        {"x": FLAT},
        {"x": [FLAT[:, :2], NAN * FLAT, None]},
    ),
    "Uniform": (gf.Uniform, {"space": SPHERE}, {"space": SPACE, "dtype": DTYPE}),
    "WrappedNormal": (
        gf.WrappedNormal,
        {"space": SPHERE},
        {"space": SPACE, "mean": [2 * X[0], X, "pole"], "scale": LENGTH, "dtype": DTYPE},
    ),
    "WrappedNormal.fit": (NORMAL.fit, None, {"X": BAD_POINTS}),
    "calibration": (
        gf.calibration,
        {"distribution": NORMAL, "x": X, "n_samples": 20},
        {
            "distribution": [None, "normal", Field()],
            "x": BAD_POINTS,
            "context": [GIVEN, GIVEN[:5]],
            "n_samples": [*COUNT, None, 19],
            "generator": GENERATOR,
        },
    ),
    "check_invertibility": (
        gf.check_invertibility,
        {"layer": layers.Logit(), "z": FLAT},
        {"layer": [None, "layer", Field()], "z": [None, 3, FLAT.long(), FLAT[:0]]},
    ),
    "check_normalization": (
        gf.check_normalization,
        {"distribution": NORMAL, "n": 50},
        {
            "distribution": [None, "normal", Field()],
            "n": [*COUNT, None, 1],
            "generator": GENERATOR,
        },
    ),
    "check_sampling": (
        gf.check_sampling,
        {"distribution": NORMAL, "n": 50},
        {
            "distribution": [None, "normal", Field()],
            "n": [*COUNT, None, 1],
            "generator": GENERATOR,
        },
    ),
    "classifier_test": (
        gf.classifier_test,
        {"space": SPHERE, "x": X, "y": X, "generator": FIXED},
        {
            "space": SPACE,
            "x": [*BAD_POINTS, X[:3]],
            "y": [*BAD_POINTS, X[:3]],
            "features": [None, 3, "distances", lambda s, x, m: NAN * x, lambda s, x, m: 0],
            "n_landmarks": [*COUNT, None],
            "classifier": [3, "trees", Field()],
            "generator": GENERATOR,
        },
    ),
    "divergence": (
        gf.divergence,
        {"space": SPHERE, "field": Field(), "points": X},
        {
            "space": SPACE,
            "field": [None, 3, "field", lambda x: x[:, :2], lambda x: 0],
            "points": BAD_POINTS,
            "method": ["fast", None, 3],
        },
    ),
    "divergence by probes": (
        gf.divergence,
        {"space": SPHERE, "field": Field(), "points": X, "method": "hutchinson"},
        {"n_probes": [*COUNT, None], "generator": GENERATOR},
    ),
    "equip_with_distribution": (
        gf.equip_with_distribution,
        None,
        {"space": SPACE, "distribution": ["gauss", None, 3, int]},
    ),
    "free_energy": (
        gf.free_energy,
        {"distribution": NORMAL, "target": NORMAL.log_prob, "n": 10, "generator": FIXED},
        {
            "distribution": [None, "normal", Field()],
            "target": [3, None, "target", lambda x: x],
            "n": [*COUNT, None, 1],
            "generator": GENERATOR,
        },
    ),
    "gradient": (
        gf.gradient,
        {"space": SPHERE, "potential": lambda x: x[:, 0], "points": X},
        {
            "space": SPACE,
            "potential": [None, 3, "potential", lambda x: x, lambda x: 0],
            "points": BAD_POINTS,
        },
    ),
    "laplacian": (
        gf.laplacian,
        {"space": SPHERE, "potential": lambda x: x[:, 0], "points": X},
        {
            "space": SPACE,
            "potential": [None, 3, "potential", lambda x: x, lambda x: 0],
            "points": BAD_POINTS,
            "method": ["fast", None, 3],
        },
    ),
    "laplacian by probes": (
        gf.laplacian,
        {
            "space": SPHERE,
            "potential": lambda x: x[:, 0],
            "points": X,
            "method": "hutchinson",
        },
        {"n_probes": [*COUNT, None], "generator": GENERATOR},
    ),
    "load": (gf.load, None, {"path": PATH, "map_location": ["nowhere", 3]}),
    "log_volume_change": (
        gf.log_volume_change,
        {"mapping": lambda z: torch.cat([z, z.sin()], 1), "points": FLAT},
        {
            "mapping": [None, 3, "map", lambda z: z[:, :2], lambda z: 0, lambda z: z[0]],
            "points": [None, FLAT.long(), FLAT[0], FLAT[:0], NAN * FLAT, "points"],
            "method": ["fast", None, 3],
            "space": ["sphere", 3],
            "n_probes": [*COUNT, None],
        },
    ),
    "log_volume_change by probes": (
        gf.log_volume_change,
        {"mapping": torch.sinh, "points": FLAT, "method": "hutchinson"},
        {"n_probes": [*COUNT, None], "generator": GENERATOR},
    ),
    "log_volume_change_and_error": (
        gf.log_volume_change_and_error,
        {"mapping": torch.sinh, "points": FLAT},
        {
            "mapping": [None, 3, "map", lambda z: z[:, :2], lambda z: 0],
            "points": [None, FLAT.long(), FLAT[0], FLAT[:0], NAN * FLAT],
            "space": ["sphere", 3],
            "n_probes": [*COUNT, None],
            "generator": GENERATOR,
        },
    ),
    "maximum_mean_discrepancy": (
        gf.maximum_mean_discrepancy,
        {"space": SPHERE, "x": X, "y": X, "n_permutations": 5, "generator": FIXED},
        {
            "space": SPACE,
            "x": [*BAD_POINTS, X[:1]],
            "y": [*BAD_POINTS, X[:1]],
            "features": [None, 3, "distances", lambda s, x, m: NAN * x, lambda s, x, m: 0],
            "n_landmarks": [*COUNT, None],
            "bandwidth": [*LENGTH, True],
            "n_permutations": [*COUNT, None],
            "generator": GENERATOR,
        },
    ),
    "outlier_scores": (
        gf.outlier_scores,
        {"flow": INJECTIVE, "x": FLAT},
        {
            "flow": [None, 3, NORMAL],
            "x": [None, FLAT[:, :2], NAN * FLAT, FLAT[0]],
            "context": [GIVEN, "given"],
            "batch_size": [*COUNT, None],
        },
    ),
    "register_distribution": (gf.register_distribution, None, {"name": [None, 3, ""]}),
    "register_saved": (
        gf.register_saved,
        None,
        {"cls": [3, "class", Field()], "arguments": [3, "axis", ["axis"]]},
    ),
    "report": (
        gf.report,
        {"distribution": NORMAL, "X_test": X, "n_samples": 20, "n": 100},
        {
            "distribution": [None, "normal", Field()],
            "X_test": [*BAD_POINTS, X[:7]],
            "X_train": [*BAD_POINTS[:4], *BAD_POINTS[5:]],
            "context": [GIVEN, GIVEN[:5], "given"],
            "n_samples": [*COUNT, None, 19],
            "n": [*COUNT, None, 99],
            "seed": SEED,
        },
    ),
    "save": (
        lambda thing=NORMAL, path="flow.safetensors": gf.save(thing, path),
        None,
        {"thing": [None, 3, "flow", lambda x: x], "path": [*PATH, ".", "no/such/folder/f"]},
    ),
    "layers.Chart": (layers.Chart, {"space": R3}, {"space": [*SPACE, SPHERE]}),
    "layers.Embedding": (
        layers.Embedding,
        {"dim": 2, "ambient_dim": 3},
        {"dim": [*COUNT, None], "ambient_dim": [*COUNT, None, 1]},
    ),
    "layers.LinearEmbedding": (
        layers.LinearEmbedding,
        {"dim": 2, "ambient_dim": 3},
        {
            "dim": [*COUNT, None],
            "ambient_dim": [*COUNT, None, 1],
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "layers.Logit": (layers.Logit, {}, {"alpha": [-1.0, 0.5, NAN, "small", None, True]}),
    "layers.MongeAmpere": (
        layers.MongeAmpere,
        {"space": SPHERE, "potential": Field()},
        {
            "space": SPACE,
            "potential": ["mlp", 3, lambda x: x],
            "n_steps": [*COUNT, None],
            "step_size": [*LENGTH, None],
            "symmetry": [3, [[0, 0, 1]], []],
            "solver": ["euler", None, 3],
            "context_dim": [*DIM, None],
        },
    ),
    "layers.MongeAmpere by default": (layers.MongeAmpere, {"space": R3}, {"dtype": DTYPE}),
    "layers.MoserTransport": (
        layers.MoserTransport,
        {"moser_flow": gf.MoserFlow(SPHERE, field=Field())},
        {
            "moser_flow": [None, 3, NORMAL],
            "rtol": [*LENGTH, None],
            "atol": [*LENGTH, None],
        },
    ),
    "layers.Reshape": (
        layers.Reshape,
        {"shape_in": (4,), "shape_out": (2, 2)},
        {"shape_in": [(-4,), (-2, -2), (4.0,), "4", 4, None, (5,)]}
        | {"shape_out": [(-4,), (-2, -2), (4.0,), "4", 4, None, (5,)]},
    ),
    "layers.smooth_couplings": (
        layers.smooth_couplings,
        {"dim": 3},
        {"dim": [*COUNT, None, 1], "n_blocks": [*COUNT, None], "width": [*COUNT, None]},
    ),
    "networks.ConditionalSourceField": (
        networks.ConditionalSourceField,
        {"space": SPHERE, "context_dim": 2, "n_sources": 8, "generator": FIXED},
        {
            "space": SPACE,
            "context_dim": [*COUNT, None],
            "n_sources": [*COUNT, None],
            "background": [3, "field", lambda x: x],
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "networks.EigenfunctionField": (
        networks.EigenfunctionField,
        {"space": MESH, "n_eigenfunctions": 2},
        {"space": SPACE, "n_eigenfunctions": [*COUNT, None], "dtype": DTYPE},
    ),
    "networks.FourierField": (
        networks.FourierField,
        {"shape": (3,), "generator": FIXED},
        {
            "shape": SHAPE,
            "n_features": [*COUNT, None],
            "hidden": [*COUNT, None],
            "depth": [*COUNT, None],
            "max_frequency": [*LENGTH, None],
            "context_dim": [*DIM, None],
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "networks.FourierPotential": (
        networks.FourierPotential,
        {"shape": (3,), "generator": FIXED},
        {
            "shape": SHAPE,
            "n_features": [*COUNT, None],
            "hidden": [*COUNT, None],
            "depth": [*COUNT, None],
            "max_frequency": [*LENGTH, None],
            "context_dim": [*DIM, None],
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "networks.InputConvexPotential": (
        networks.InputConvexPotential,
        {"shape": (3,), "generator": FIXED},
        {
            "shape": SHAPE,
            "hidden": [*COUNT, None],
            "depth": [*COUNT, None],
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "networks.LatticePotential": (
        networks.LatticePotential,
        {"side": 3},
        {
            "side": [*COUNT, None],
            "lattice_dim": [*COUNT, None],
            "width": [*COUNT, None],
            "activation": ["relu", None, 3],
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "networks.OneHiddenLayerPotential": (
        networks.OneHiddenLayerPotential,
        {"dim": 3, "width": 4},
        {
            "dim": [*COUNT, None],
            "width": [*COUNT, None],
            "activation": ["relu", None, 3],
            "generator": GENERATOR,
            "dtype": DTYPE,
            "context_dim": [*DIM, None],
        },
    ),
    "networks.SourceField": (
        networks.SourceField,
        {"space": SPHERE, "n_sources": 8},
        {
            "space": SPACE,
            "n_sources": [*COUNT, None],
            "background": [3, "field", lambda x: x],
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "networks.SymmetricPotential": (
        networks.SymmetricPotential,
        {"potential": Field(), "group": [[0, 1, 2]]},
        {
            "potential": [None, 3, "potential"],
            "group": [None, 3, [], [[0, 0, 1]], [[1, 2, 0]], [[0.5, 1]], [[0, 1], [0]]],
        },
    ),
    "networks.TimeDependentPotential": (
        networks.TimeDependentPotential,
        {"potentials": [Field(), Field()]},
        {
            "potentials": [None, 3, [], [Field()], [3, 4], [Field(), "field"]],
            "end": [*LENGTH, None],
        },
    ),
    "networks.cyclic": (networks.cyclic, {"n": 3}, {"n": [*COUNT, None]}),
    "networks.generate": (
        networks.generate,
        {"generators": [[1, 2, 0]]},
        {"generators": [None, 3, [], [[0, 0, 1]]], "max_order": [*COUNT, None]},
    ),
    "networks.lattice_symmetries": (
        networks.lattice_symmetries,
        {"side": 2},
        {"side": [*COUNT, None], "lattice_dim": [*COUNT, None]},
    ),
    "networks.permutations": (
        networks.permutations,
        {"n": 3},
        {"n": [*COUNT, None, 1000], "size": [*COUNT, None]},
    ),
    "networks.sign_flip": (networks.sign_flip, {"dim": 3}, {"dim": [*COUNT, None]}),
    "datasets.dequantize": (
        datasets.dequantize,
        {"images": torch.zeros(2, 4, dtype=torch.uint8)},
        {
            "images": [None, FLAT, torch.zeros(3, dtype=torch.uint8), [[1]]],
            "generator": GENERATOR,
            "dtype": [torch.float16, "float32", None],
        },
    ),
    **{
        f"datasets.load_{name}": (
            getattr(datasets, f"load_{name}"),
            None,
            {argument: [None, 3, "unknown", ["earth"]], "path": [3, "no/such/file"]},
        )
        for name, argument in {
            "earth": "name",
            "tabular": "name",
            "torsions": "name",
            "mnist": "split",
            "fashion_mnist": "split",
        }.items()
    },
    "datasets.load_torsions by group": (
        datasets.load_torsions,
        None,
        {"group": [3, "unknown", ["glycine"]]},
    ),
    "datasets.load_eeg": (
        datasets.load_eeg,
        None,
        {"path": [3, "no/such/file"], "n_channels": [*COUNT, None, 1000]},
    ),
    "datasets.load_orientations": (
        datasets.load_orientations,
        None,
        {"path": [3, "no/such/file"]},
    ),
    "datasets.split": (
        datasets.split,
        {"points": FLAT.numpy(), "seed": 0},
        {
            "points": [None, 3],
            "seed": [1.5, "seed", -1, None],
            "shares": [(0.8, 0.3), (-0.1, 0.5), (NAN, 0.1), (0.8,), 0.8, None, "ab"],
            "groups": [[1, 2], 3],
        },
    ),
    "plotting.view": (plotting.view, {"space": SPHERE}, {"space": [*SPACE, R3]}),
    "plotting.plot_density": (
        plotting.plot_density,
        None,
        {
            "distribution": [None, 3, "normal", Field()],
            "points": [*BAD_POINTS[:4], *BAD_POINTS[5:]],
            "ax": [3, "axes"],
            "space": ["sphere", 3, R3],
            "resolution": [*COUNT, None, 1],
            "cmap": [3, "no colours"],
        },
    ),
    "testing.check_distribution": (
        testing.check_distribution,
        None,
        {
            "distribution": [None, "normal", Field()],
            "n": [*COUNT, None, 1],
            "generator": GENERATOR,
        },
    ),
    "testing.check_space": (
        testing.check_space,
        None,
        {
            "space": SPACE,
            "n": [*COUNT, None],
            "n_samples": [*COUNT, None],
            "seed": SEED,
            "dtype": DTYPE,
            "device": ["nowhere", 3],
        },
    ),
    "targets.IsingTarget": (
        targets.IsingTarget,
        {"side": 3},
        {
            "side": [*COUNT, None, 1],
            "temperature": [*LENGTH, None],
            "smallest_eigenvalue": [*LENGTH, None],
        },
    ),
    "targets.Phi4Target": (
        targets.Phi4Target,
        {"side": 3, "mass_squared": 1.0, "coupling": 1.0},
        {
            "side": [*COUNT, None],
            "mass_squared": [NAN, INF, "heavy", None, 1j],
            "coupling": [-1.0, NAN, INF, "strong", None, 1j],
            "lattice_dim": [*COUNT, None],
        },
    ),
    "targets.exact_log_partition": (
        targets.exact_log_partition,
        {"side": 3},
        {"side": [*COUNT, None, 1], "temperature": [*LENGTH, None]},
    ),
}

# any object is true or false
FREE = {"drop_duplicates", "download", "one_per_location", "progress", "verbose", "kwargs"}
# of what is no space nothing is available; views are made by plotting.view
FREE_HERE = {"available_distributions(space)", "plotting.View(space)"}
# what scikit-learn says of a seed, and torch.nn of a file
SYNONYMS = {"random_state": "seed|Seed|random_state", "thing": "save"}
REQUIRED = {
    "plotting.plot_density": {"distribution": NORMAL, "resolution": 4},
    "testing.check_distribution": {"distribution": NORMAL, "n": 100},
    "testing.check_space": {"space": SPHERE, "n": 8, "n_samples": 100},
    "datasets.load_torsions by group": {"name": "rna"},
    "equip_with_distribution": {"space": SPHERE},
    "load": {"path": "none"},
    "MoserFlow.sample_with_count": {"n": 2},
    "datasets.load_earth": {"name": "volcano"},
    "datasets.load_tabular": {"name": "wine"},
    "datasets.load_torsions": {"name": "rna"},
}
ROWS = [(name, argument) for name, (_, _, bad) in TABLE.items() for argument in bad]


def _global_streams():
    _, key, place, *rest = np.random.get_state()  # noqa: NPY002 - what is not to move
    torchs = torch.get_rng_state().numpy().tobytes()
    return torchs, key.tobytes(), place, rest, random.getstate()


@pytest.fixture(autouse=True)
def _no_files_no_draws_no_hanging(tmp_path, monkeypatch):
    def hang(*_):
        raise AssertionError("this hangs")

    monkeypatch.chdir(tmp_path)
    before = _global_streams()
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, hang)
        signal.alarm(60)
    yield
    if hasattr(signal, "SIGALRM"):
        signal.alarm(0)
    assert not list(tmp_path.iterdir())
    assert _global_streams() == before


@pytest.mark.parametrize("name, argument", ROWS)
def test_a_bad_argument_is_refused_by_name(name, argument):
    function, fine, bad = TABLE[name]
    wrong = []
    for value in bad[argument]:
        arguments = {**(fine or {}), **REQUIRED.get(name, {}), argument: value}
        try:
            function(**arguments)
        except (TypeError, ValueError) as error:
            said = str(error)
        except OSError as error:
            said = f"{argument}: {error}" if str(value) in str(error) else str(error)
        except Exception as error:
            said = f"no error of a type that says what it is: {error!r}"
        else:
            said = "nothing"
        if not re.search(rf"(?<![\w.])({SYNONYMS.get(argument, argument)})\b", said):
            wrong.append(f"{value!r:.40}: {said:.200}")
    assert not wrong, "\n".join(wrong)


FINE = [name for name, row in TABLE.items() if row[1] is not None]


@pytest.mark.parametrize("name", [name for name in FINE if "generator" in TABLE[name][2]])
def test_what_takes_a_generator_draws_from_it_alone(name):
    function, fine, _ = TABLE[name]
    draws = torch.Generator().manual_seed(3)
    before = draws.get_state()
    function(**{**fine, "generator": draws})
    assert not torch.equal(draws.get_state(), before)


@pytest.mark.parametrize("name", FINE)
def test_the_other_arguments_are_fine(name):
    function, fine, _ = TABLE[name]
    with torch.random.fork_rng([]):
        function(**fine)


def test_the_table_has_every_argument_of_every_public_name():
    missing = []
    for module in ("", "layers", "networks", "datasets", "plotting", "testing", "targets"):
        here = importlib.import_module("geoflow_plugin" + ("." if module else "") + module)
        for name in getattr(here, "__all__", dir(here)):
            thing = getattr(here, name)
            if not callable(thing):
                continue
            full = f"{module}.{name}" if module else name
            known = {a for row, (*_, bad) in TABLE.items() for a in bad if _same(row, full)}
            arguments = set(inspect.signature(thing).parameters)
            missing += [f"{full}({a})" for a in arguments - known - FREE]
    assert not set(missing) - FREE_HERE


def _same(row, name):
    return row == name or row.startswith(name + " by ")
