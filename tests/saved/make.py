"""Files that this version writes, for later ones to read, and the densities in them.

    python tests/saved/make.py

writes those of today's format; files of earlier formats are never written again.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
EXPECTED = {}
if (FOLDER / "expected.json").exists():
    EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def make():
    """Small models with much in them: name -> flow."""
    import normflows as nf
    import torch
    from geomstats.geometry.hypersphere import Hypersphere
    from geomstats.geometry.nfold_manifold import NFoldManifold, NFoldMetric
    from geomstats.geometry.spd_matrices import SPDLogEuclideanMetric, SPDMatrices

    import geoflow_plugin as gf
    from geoflow_plugin import networks

    torch.manual_seed(0)
    dtype = torch.float64
    torus = NFoldManifold(Hypersphere(1), 2, equip=False)
    torus.equip_with_metric(NFoldMetric, scales=[1.0, 2.0])
    X = gf.Uniform(torus, dtype=dtype).sample(20)
    base = gf.Mixture(torus, [gf.KernelDensity(torus).fit(X), gf.Uniform(torus, dtype=dtype)])
    background = networks.FourierField((2, 2), 4, 8, dtype=dtype)
    field = networks.SourceField(torus, 8, background=background, dtype=dtype)
    moser = gf.MoserFlow(torus, base, field)
    moser.fit(X, max_steps=5, progress=False)

    space = SPDMatrices(2, equip=False).equip_with_metric(SPDLogEuclideanMetric)
    space.metric = 2.0 * space.metric
    potential = networks.OneHiddenLayerPotential(4, 8)
    exchange = [(torch.tensor([3, 1, 2, 0]), torch.ones(4)), *networks.sign_flip(4)[:1]]
    gradient = gf.MongeAmpereFlow(space, potential=potential, n_steps=3, symmetry=exchange)

    parts = [nf.flows.AffineCouplingBlock(nf.nets.MLP([2, 6, 2])), nf.flows.ActNorm((3,))]
    sphere = Hypersphere(1)
    injective = gf.InjectiveFlow(3, sphere, high_layers=parts)
    injective.fit(torch.randn(30, 3), max_steps=3, progress=False)
    return {"moser": moser, "gradient": gradient, "injective": injective}


def main():
    """Write the files and what they say of a few points."""
    import torch

    from geoflow_plugin.persistence.versions import FORMAT

    expected = dict(EXPECTED)
    for name, flow in make().items():
        name = f"v{FORMAT[0]}.{FORMAT[1]}_{name}.safetensors"
        flow.save(FOLDER / name)
        x = flow.sample(3, generator=torch.Generator().manual_seed(0))
        expected[name] = [x.tolist(), flow.log_prob(x).tolist()]
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
