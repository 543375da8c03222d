"""The table of docs/earth.md: four Earth sets, five seeds, with and without repeats.

GEOFLOW_DATA=../shared/data python examples/earth_table.py

Every row is one split (80/10/10). Validation points stop the flow and weigh the mixture;
test points are scored once. Rows are printed as they come, then their means.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor

# one thread a process: two fits run side by side on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from geomstats.geometry.hypersphere import Hypersphere  # noqa: E402

import geoflow_plugin as gf  # noqa: E402

COLUMNS = ["kde", "moser", "mixture", "seconds", "integral", "error", "negative",
           "weight", "sample", "proposals"]  # fmt: skip


def run(name, drop_duplicates, seed, steps):
    """Score one split; returns the columns above."""
    torch.manual_seed(seed)
    space = Hypersphere(2)
    points = gf.datasets.load_earth(name, drop_duplicates=drop_duplicates)
    train, validation, test = gf.datasets.split(points.astype("float32"), seed)
    start = time.perf_counter()
    kde = gf.KernelDensity(space).fit(train)
    flow = gf.MoserFlow(space).fit(
        train, validation=validation, max_steps=steps, seed=seed, progress=False
    )
    mixture = gf.Mixture(space, [kde, flow]).fit(validation)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        nll = [-float(d.log_prob(test).mean()) for d in (kde, flow, mixture)]
    generator = torch.Generator().manual_seed(seed)
    integral, error = gf.check_normalization(mixture, 10_000, generator)
    start = time.perf_counter()
    mixture.sample(1000, generator=generator)
    sample = time.perf_counter() - start
    _, n_proposals = flow.sample_with_count(1000, generator=generator)
    return [*nll, seconds, integral, error, flow.negative_mass(),
            float(mixture.weights[1]), sample, n_proposals]  # fmt: skip


def main():
    """Run all splits, two at a time, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=None, help="bound on steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--names", nargs="+", default=list(gf.datasets.EARTH))
    options = parser.parse_args()
    print("name", "repeats", "seed", *COLUMNS, sep="\t", flush=True)
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = {
            (name, drop, seed): pool.submit(run, name, drop, seed, options.steps)
            for drop in (True, False)
            for seed in range(options.seeds)
            for name in options.names
        }
        rows = {}
        for (name, drop, seed), job in jobs.items():
            rows.setdefault((name, drop), []).append(job.result())
            print(name, "dropped" if drop else "kept", seed,
                  *(f"{v:.4g}" for v in job.result()), sep="\t", flush=True)  # fmt: skip
    print()
    for (name, drop), values in rows.items():
        mean, spread = (
            torch.tensor(values).mean(0),
            torch.tensor(values).std(0, correction=len(values) > 1),
        )
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
        print(f"| {name} | {'dropped' if drop else 'kept'} | " + " | ".join(cells))


if __name__ == "__main__":
    main()
