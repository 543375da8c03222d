"""A million points that stay in their file: what a fit holds in memory, and what it learns.

    python examples/streaming.py --space torus

The points of a mixture of normal laws, whose density is known, are written to a file and
fitted from there, a batch at a time: first few of them, then all, each in a process of its
own, whose peak of resident memory is printed.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from geomstats.geometry.hypersphere import Hypersphere  # noqa: E402
from geomstats.geometry.nfold_manifold import NFoldManifold  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

import geoflow_plugin as gf  # noqa: E402

SPACES = {"sphere": lambda: Hypersphere(2), "torus": lambda: NFoldManifold(Hypersphere(1), 7)}
CHUNK = 2**14


class Points(Dataset):
    """The first rows of a file of points.

    Read row by row: of a ``numpy.memmap`` the pages around each row count as resident too, in
    the end all of the file, though the system may take them back.
    """

    def __init__(self, path, n, shape):
        self.path, self.n, self.shape = path, n, shape

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        return self.__getitems__([row])[0]

    def __getitems__(self, rows):
        size = 4 * math.prod(self.shape)
        with open(self.path, "rb") as file:
            read = [os.pread(file.fileno(), size, row * size) for row in rows]
        points = np.frombuffer(bytearray().join(read), np.float32)
        return list(torch.from_numpy(points.reshape(-1, *self.shape)))


def truth(space):
    """Four normal laws of different widths."""
    means = gf.Uniform(space).sample(4, generator=torch.Generator().manual_seed(1))
    scales = 0.1, 0.2, 0.4, 0.8
    laws = [gf.WrappedNormal(space, *law) for law in zip(means, scales, strict=True)]
    return gf.Mixture(space, laws)


def write(law, n, path):
    generator = torch.Generator().manual_seed(2)
    with open(path, "wb") as file:
        for start in range(0, n, CHUNK):
            x = law.sample(min(CHUNK, n - start), generator=generator)
            file.write(x.numpy().tobytes())


def peak():
    """Largest resident memory of this process so far, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def fit(args):
    """Fit, and print the figures as JSON: what a process of its own does."""
    space = SPACES[args.space]()
    law = truth(space)
    draws = torch.Generator().manual_seed(3)
    validation, test = (law.sample(4096, generator=draws) for _ in range(2))
    torch.manual_seed(args.seed)
    flow = gf.MoserFlow(space)
    started, before = time.perf_counter(), peak()
    flow.fit(
        Points(args.file, args.points, space.shape),
        validation=validation,
        max_steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        progress=False,
    )
    figures = {"peak": peak(), "before": before, "seconds": time.perf_counter() - started}
    with torch.no_grad():
        figures["nll"] = -float(flow.log_prob(test).mean())
        figures["truth"] = -float(law.log_prob(test).mean())
    print(json.dumps(figures))


def main(args):
    if args.file:
        fit(args)
        return
    if not args.json:
        print("points      before (MB)   peak (MB)   seconds   test NLL   that of the truth")
    space = SPACES[args.space]()
    # large blocks go back to the system when they are freed, or their holes are measured
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    options = {"space": args.space, "steps": args.steps, "seed": args.seed}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "points")
        write(truth(space), args.points, path)
        for n in (args.few, args.points):
            options |= {"file": path, "points": n, "batch-size": args.batch_size}
            command = [f"--{name}={value}" for name, value in options.items()]
            command = [sys.executable, __file__, *command]
            done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
            row = json.loads(done.stdout)
            print(
                json.dumps(row)
                if args.json
                else f"{n:<12,}{row['before']:11.0f}{row['peak']:12.0f}{row['seconds']:10.0f}"
                f"{row['nll']:11.3f}{row['truth']:20.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", choices=SPACES, default="sphere")
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000, help="points of the first fit")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--file", default="", help="fit the points of this file alone")
    main(parser.parse_args())
