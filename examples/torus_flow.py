"""A Moser flow as base of a normflows model on the torus.

The flow is fitted first. Its angles then go through circular splines of normflows,
the identity at first, which are trained by ``forward_kld`` and lead back to the torus.

    python examples/torus_flow.py --output torus_flow.png
"""

import argparse
import math

import matplotlib.pyplot as plt
import normflows as nf
import torch
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold

import geoflow_plugin as gf
from geoflow_plugin.plotting import plot_density


def make_data(space, n, generator):
    """Two bands around the torus, one of them bent, as points (n, 2, 2)."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    noise = 0.25 * torch.randn(n, generator=generator)
    bent = torch.rand(n, generator=generator) < 0.6
    other = torch.where(bent, angle + 0.8 * (2 * angle).sin(), 2.5 - angle)
    angles = torch.stack([angle, other + noise], dim=1)
    return gf.geometry.chart_inverse(space, angles)[0]


def make_model(space, base):
    chart = gf.layers.Chart(space)  # angles to points
    layers = [nf.flows.Reverse(chart)]
    for i in range(4):
        layers += [
            nf.flows.CircularCoupledRationalQuadraticSpline(
                2, 1, 32, ind_circ=[0, 1], tail_bound=math.pi, reverse_mask=i % 2 == 1
            ),
            nf.flows.PeriodicShift([0, 1], bound=math.pi, shift=math.pi / 2),
        ]
    layers.append(chart)
    return nf.NormalizingFlow(q0=base, flows=layers)


def main(args):
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    space = NFoldManifold(Hypersphere(1), 2)
    train, test = make_data(space, 4000, generator), make_data(space, 2000, generator)

    field = gf.networks.FourierField(space.shape, max_frequency=2.0)  # a coarse base
    base = gf.MoserFlow(space, field=field)
    base.fit(train, max_steps=args.steps, seed=args.seed, progress=False)
    model = make_model(space, base.requires_grad_(False))
    print("step   test NLL (nats)")
    splines = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(splines, lr=1e-3)
    for step in range(args.steps + 1):
        if step % max(1, args.steps // 5) == 0 or step == args.steps:
            with torch.no_grad():
                print(f"{step:4d}{model.forward_kld(test).item():18.3f}")
        if step == args.steps:
            break
        rows = torch.randint(len(train), (256,), generator=generator)
        loss = model.forward_kld(train[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    kde = gf.KernelDensity(space).fit(train)
    with torch.no_grad():
        print(f"KernelDensity {-kde.log_prob(test).mean().item():8.3f}")
        angle = (torch.arange(200) + 0.5) * math.pi / 100 - math.pi
        grid = gf.geometry.chart_inverse(space, torch.cartesian_prod(angle, angle))[0]
        density = torch.cat([model.log_prob(part) for part in grid.split(4096)]).exp()
    integral = density.mean() * math.exp(gf.geometry.log_volume(space))
    print(f"integral      {integral:8.4f} by quadrature")

    ax = plot_density(model, test[:500], space=space)
    ax.set_title("Circular splines over a Moser flow")
    ax.figure.savefig(args.output, dpi=150)
    plt.close(ax.figure)
    print(f"picture       {args.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", default="torus_flow.png")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
