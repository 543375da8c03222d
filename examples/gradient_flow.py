"""Gradient flows on curved spaces: Monge-Ampère flows of real data, beside others.

    GEOFLOW_DATA=/path/to/data python examples/gradient_flow.py --name flood

Earth sets (volcano, earthquake, flood, fire) lie on the sphere, nickel (orientations of
crystals) on SO(3), rna (torsion angles) on a torus of dimension 7. A potential of one
hidden layer moves the data to where kernels fit them well: in every round a kernel density
is put on part of the points, taken back along the flow, and the potential learns from the
others; in the end there is a kernel on every point. With no potential at all this is the
kernel density of the data. Densities are an exact change of variables.
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


def kernels(space, points):
    """Kernels on points, and a little of the uniform law for what is far from them all."""
    parts = [gf.KernelDensity(space).fit(points), gf.Uniform(space).to(points)]
    return gf.Mixture(space, parts, weights=[0.995, 0.005])


def place(potential, space, train, sharpness, draws):
    """Let units bend where data are; on a torus most of them see one circle alone."""
    if isinstance(space, NFoldManifold):
        weight = potential.weight.data.unflatten(1, (space.n_copies, -1))
        for row in range(int(0.7 * len(weight))):
            others = torch.arange(space.n_copies) != row % space.n_copies
            weight[row, others] = 0.0
    potential.initialize(train, sharpness, draws)


def latent(flow, x):
    """Points taken back along the flow."""
    with torch.no_grad():
        return torch.cat([flow.layer.inverse(part)[0] for part in x.split(1024)])


def fit(flow, train, validation, arguments):
    """Rounds of kernels on some of the points, and a potential that learns from the rest."""
    n_steps, draws = arguments.n_steps, torch.Generator().manual_seed(arguments.seed)
    for turn in range(arguments.rounds):
        order = torch.randperm(len(train), generator=draws).to(train.device)
        centers, rest = order.tensor_split([min(arguments.centers, len(order) // 2)])
        flow.base = kernels(flow.space, latent(flow, train[centers]))
        flow.fit(
            train[rest],
            validation=validation[:1000],
            max_steps=arguments.steps,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed + turn,
        )
    # coarse steps will do to learn; what is reported takes shorter ones
    flow.layer.n_steps, flow.layer.step_size = 4 * n_steps, 1 / (4 * n_steps)
    flow.base = kernels(flow.space, latent(flow, train))


def gap(flow, x):
    """By how much the adaptive solver changes log densities, at most."""
    with torch.no_grad():
        value, solver = flow.log_prob(x), flow.layer.solver
        flow.layer.solver = "adaptive"
        difference = (flow.log_prob(x) - value).abs().max()
        flow.layer.solver = solver
    return float(difference)


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
    ax.figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"wrote {path}")


def main():
    """Fit, score on the test points, check the integral, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="flood")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps a round")
    parser.add_argument("--centers", type=int, default=1500, help="kernels while learning")
    parser.add_argument("--width", type=int, default=256, help="hidden units")
    parser.add_argument("--sharpness", type=float, default=6.0, help="of the hidden units")
    parser.add_argument("--n-steps", type=int, default=2, help="Runge-Kutta steps")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--points", type=int, default=10_000, help="at most, of each part")
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
    draws = torch.Generator().manual_seed(arguments.seed)
    potential = gf.networks.OneHiddenLayerPotential(
        train[0].numel(), arguments.width, generator=draws, dtype=train.dtype
    )
    place(potential, space, train.cpu(), arguments.sharpness, draws)
    potential.to(arguments.device)
    step_size = 1 / arguments.n_steps
    flow = gf.MongeAmpereFlow(
        space, potential=potential, n_steps=arguments.n_steps, step_size=step_size
    )
    start = time.perf_counter(), time.process_time()
    fit(flow, train, validation, arguments)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    print(f"fitted in {wall:.0f} s, {cpu:.0f} s of the processor")
    kde = gf.KernelDensity(space).fit(train)
    uniform = gf.Uniform(space).to(train)
    for name, model in {"uniform": uniform, "KernelDensity": kde, "flow": flow}.items():
        (held_out, _), (value, error) = nll(model, validation), nll(model, test)
        row = f"validation NLL {held_out:.3f}, test NLL {value:.3f} ± {error:.3f} nats"
        print(f"{name:>16}: {row}")
    print(f"fixed steps against the adaptive solver: {gap(flow, test[:256]):.2g} nats at most")
    if geometry.dim(space) <= 3:
        integral, error = gf.check_normalization(
            flow, 10_000, torch.Generator(arguments.device).manual_seed(0)
        )
        print(f"integral of the density: {integral:.4f} ± {error:.4f}")
        draw(space, flow, test, arguments.out)


if __name__ == "__main__":
    main()
