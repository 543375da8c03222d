"""Gradient flows on curved spaces: Monge-Ampère flows of real data, beside others.

    GEOFLOW_DATA=/path/to/data python examples/gradient_flow.py --name flood

Earth sets (volcano, earthquake, flood, fire) lie on the sphere, nickel (orientations of
crystals) on SO(3), rna (torsion angles) on a torus of dimension 7. The flow starts from
the uniform law; its density is an exact change of variables.
"""

import argparse
import time

import matplotlib.pyplot as plt
import torch
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.plotting import plot_density


def load(name):
    """Space, points without repeats, and what has to stay together in a split."""
    if name == "nickel":
        points, places = gf.datasets.load_orientations(one_per_location=True)
        return SpecialOrthogonal(3), points, places
    if name == "rna":
        points, _ = gf.datasets.load_torsions("rna", drop_duplicates=True)
        return NFoldManifold(Hypersphere(1), points.shape[1]), points, None
    return Hypersphere(2), gf.datasets.load_earth(name, drop_duplicates=True), None


def nll(model, x):
    """Mean negative log density and its standard error over the points."""
    with torch.no_grad():
        value = torch.cat([model.log_prob(part) for part in x.split(512)]).double()
    return -float(value.mean()), float(value.std()) / len(x) ** 0.5


def draw(space, flow, test, path):
    """The density where it can be drawn; on SO(3), where samples carry the pole."""
    if isinstance(space, Hypersphere):
        ax = plot_density(flow, test)
    else:
        drawn = flow.sample(len(test), generator=torch.Generator().manual_seed(0))
        ax = plt.figure(figsize=(8, 4)).add_subplot(projection="mollweide")
        for points, label, marker in ((test, "test points", "o"), (drawn, "samples", "x")):
            pole = points.detach().cpu()[:, :, 2]
            longitude = torch.atan2(pole[:, 1], pole[:, 0])
            ax.scatter(longitude, pole[:, 2].arcsin(), s=8, marker=marker, label=label)
        ax.legend(loc="lower right")
        ax.set_title("image of the third axis")
        ax.grid(alpha=0.3)
    ax.figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"wrote {path}")


def main():
    """Fit, score on the test points, check the integral, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="flood")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps")
    parser.add_argument(
        "--points", type=int, default=5000, help="at most so many of each part"
    )
    parser.add_argument("--n-steps", type=int, default=8, help="Runge-Kutta steps")
    parser.add_argument(
        "--frequency", type=float, default=6.0, help="highest of the potential"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="gradient_flow.png")
    arguments = parser.parse_args()

    space, points, groups = load(arguments.name)
    parts = gf.datasets.split(points.astype("float32"), arguments.seed, groups=groups)
    train, validation, test = (
        torch.as_tensor(part[: arguments.points]).to(arguments.device) for part in parts
    )
    print(f"{arguments.name}: split {len(train)} / {len(validation)} / {len(test)}")
    torch.manual_seed(arguments.seed)
    shape = geometry.embed(space, train[:1]).shape[1:]
    potential = gf.networks.FourierPotential(
        shape, n_features=64, hidden=64, max_frequency=arguments.frequency
    )
    flow = gf.MongeAmpereFlow(
        space, potential=potential, n_steps=arguments.n_steps, step_size=1 / arguments.n_steps
    )
    start = time.perf_counter()
    flow.fit(
        train,
        validation=validation,
        max_steps=arguments.steps,
        batch_size=512,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        device=arguments.device,
    )
    print(f"fitted in {time.perf_counter() - start:.0f} s")
    kde = gf.KernelDensity(space).fit(train)
    uniform = gf.Uniform(space).to(arguments.device)
    for name, model in {"uniform": uniform, "KernelDensity": kde, "flow": flow}.items():
        value, error = nll(model, test)
        print(f"{name:>16}: test NLL {value:.3f} ± {error:.3f} nats")
    with torch.no_grad():
        exact = gf.layers.MongeAmpere(
            space,
            flow.potential,
            n_steps=arguments.n_steps,
            solver="adaptive",
            step_size=flow.layer.step_size,
        )
        z, log_det = exact.inverse(test[:256])
        gap = flow.base.log_prob(z) + log_det - flow.log_prob(test[:256])
    print(
        f"fixed steps against the adaptive solver: {float(gap.abs().max()):.2g} nats at most"
    )
    if geometry.dim(space) <= 3:
        integral, error = gf.check_normalization(
            flow, 10_000, torch.Generator(arguments.device).manual_seed(0)
        )
        print(f"integral of the density: {integral:.4f} ± {error:.4f}")
        draw(space, flow, test, arguments.out)


if __name__ == "__main__":
    main()
