"""The Ising model at its critical point, by a Monge-Ampère flow (Zhang, E, Wang 2018).

Trains q by the reverse Kullback-Leibler divergence against the continuous dual of the
spins on a periodic square lattice. The variational free energy is an upper bound of the
exact one, which is computed (Kaufman), not typed in.

    python examples/ising.py --side 8
    python examples/ising.py --side 8 --without-symmetry
"""

import argparse
import time

import torch
from geomstats.geometry.euclidean import Euclidean

import geoflow_plugin as gf


def make_flow(side, width, n_blocks, symmetric, seed):
    """Gradient flows one upon the other, from a normal law that is learned with them."""
    generator = torch.Generator().manual_seed(seed)
    space = Euclidean(side**2)
    flow = gf.LatticeNormal(space, side)
    n_steps = 1 if symmetric else 4
    for _ in range(n_blocks):
        if symmetric:
            potential = gf.networks.LatticePotential(side, width=width, generator=generator)
        else:  # as many hidden units, each with weights of its own
            potential = gf.networks.OneHiddenLayerPotential(
                side**2, width * side**2, activation="log_cosh", generator=generator
            )
        flow = gf.MongeAmpereFlow(
            space, flow, potential, n_steps=n_steps, step_size=1 / (n_steps * n_blocks)
        )
    return flow


def refine(flow, factor):
    """Shorten the steps of a flow, and of those that it stands on."""
    while isinstance(flow, gf.MongeAmpereFlow):
        flow.layer.n_steps *= factor
        flow.layer.step_size /= factor
        flow = flow.base


def main():
    """Train, and compare with the exact free energy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--width", type=int, default=4, help="kernels of a potential")
    parser.add_argument("--blocks", type=int, default=5, help="flows, one upon the other")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--without-symmetry", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    side, sites = arguments.side, arguments.side**2
    target = gf.targets.IsingTarget(side).to(arguments.device)
    flow = make_flow(
        side,
        arguments.width,
        arguments.blocks,
        not arguments.without_symmetry,
        arguments.seed,
    )
    n_parameters = sum(p.numel() for p in flow.parameters())
    start = time.perf_counter()
    flow.fit_target(
        target,
        max_steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        device=arguments.device,
    )
    seconds = time.perf_counter() - start
    refine(flow, 4)
    draws = torch.Generator(arguments.device).manual_seed(1)
    found = gf.free_energy(flow, target, 20_000, draws)
    exact, coarse = -target.log_partition / sites, flow.free_energy_.value / sites
    value, error = found.value / sites, found.standard_error / sites
    symmetry = "without symmetry" if arguments.without_symmetry else "with exact symmetry"
    print(
        f"L = {side}, {symmetry}, {n_parameters} parameters, {arguments.steps} steps of "
        f"{arguments.batch_size} samples in {seconds:.0f} s on {arguments.device}"
    )
    print(f"  exact free energy per site    {exact:.6f}")
    print(f"  variational, training's steps {coarse:.6f}")
    excess = 100 * (value - exact) / abs(exact)
    print(f"  variational, a quarter's size {value:.6f} ± {error:.6f}, {excess:.2f} % above")
    log_partition, spread = found.log_partition / sites, found.log_partition_error / sites
    print(f"  by importance weights         {-log_partition:.6f} ± {spread:.6f}")
    print(f"  effective sample size         {100 * found.effective_sample_size:.1f} %")
    symmetries = gf.networks.lattice_symmetries(side)
    x = flow.sample(64, generator=draws)
    images = torch.stack([flow.log_prob(x[:, g]) for g in symmetries[:: len(symmetries) // 8]])
    images = torch.cat([images, flow.log_prob(-x)[None]])
    print(
        f"  log q over symmetric images   differs by {float(images.detach().std(0).max()):.2g}"
    )


if __name__ == "__main__":
    main()
