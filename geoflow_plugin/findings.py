"""What a report found, what speaks against the model, and how that is printed."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from geoflow_plugin.calibration import Calibration
from geoflow_plugin.two_sample import ClassifierTest, DiscrepancyTest

__all__ = ["Baseline", "Estimate", "Report"]


class Estimate(NamedTuple):
    """A mean and its standard error."""

    value: float
    standard_error: float

    def __str__(self):
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


class Baseline(NamedTuple):
    """What another density says of the test points.

    Attributes
    ----------
    log_likelihood : Estimate
        Mean log density, in nats.
    gain : Estimate
        What the distribution has more, from differences point by point.
    """

    log_likelihood: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Report:
    """What ``report`` found; ``str`` prints it, and None is what could not be asked.

    Attributes
    ----------
    title : str
    n_test : int
    log_likelihood : Estimate
        Mean log density of the test points, in nats.
    baselines : dict of Baseline
        By name: ``uniform``, ``wrapped_normal``, ``kernel_density``.
    integral : Estimate or None
        Of the density, by importance sampling.
    sampling_gap : Estimate or None
        Mean log density of samples less that of the density, in nats.
    reconstruction_error : Estimate or None
        Distance of test points to a learned submanifold.
    discrepancy : DiscrepancyTest
    classifier : ClassifierTest
    calibration : Calibration
    n_duplicates : int or None
        Test points that are training points, too.
    remarks : tuple of str
        What was left out, and why.
    setting : dict
        ``dtype``, ``device``, ``seed``, and versions of packages.
    """

    title: str
    n_test: int
    log_likelihood: Estimate
    baselines: dict
    integral: Estimate | None
    sampling_gap: Estimate | None
    reconstruction_error: Estimate | None
    discrepancy: DiscrepancyTest
    classifier: ClassifierTest
    calibration: Calibration
    n_duplicates: int | None
    remarks: tuple
    setting: dict

    @property
    def objections(self):
        """What speaks against the model, a tuple of str; chance alone does in 1 of 100.

        A likelihood of zero; a baseline that is better, an integral or a gap off, each by
        more than four standard errors; p-values below 0.01 over the number of tests
        (Bonferroni); repeats.
        """
        found = [
            f"beaten by {name}: gain {base.gain} nats"
            for name, base in self.baselines.items()
            if base.gain.value < -4 * base.gain.standard_error - 1e-3
        ]
        if not math.isfinite(self.log_likelihood.value):
            found.append(f"mean log density: {self.log_likelihood.value}")
        for name, estimate, expected in [
            ("integral of the density", self.integral, 1.0),
            ("samples follow the density", self.sampling_gap, 0.0),
        ]:
            if estimate is not None and not _agrees(estimate, expected):
                found.append(f"{name}: {estimate}, not {expected:g}")
        tests: dict[str, Any] = {
            "maximum mean discrepancy": self.discrepancy,
            "classifier": self.classifier,
            "calibration": self.calibration,
        }
        found += [
            f"{name}: p = {test.p_value:.2g}"
            for name, test in tests.items()
            if not test.p_value >= 0.01 / len(tests)
        ]
        if self.n_duplicates:
            found.append(f"duplicates: {self.n_duplicates} of {self.n_test} were trained on")
        return tuple(found)

    def __str__(self):
        rows = [("mean log density", f"{self.log_likelihood} nats")]
        for name, base in self.baselines.items():
            rows.append((f"  {name}", f"{base.log_likelihood}; gain {base.gain}"))
        if self.reconstruction_error is not None:
            rows.append(("reconstruction error", str(self.reconstruction_error)))
        if self.integral is not None:
            rows.append(("integral of the density", str(self.integral)))
            rows.append(("samples less density", f"{self.sampling_gap} nats"))
        discrepancy, classifier, ranks = self.discrepancy, self.classifier, self.calibration
        rows += [
            (name, f"{value}, p = {p_value:.2g}")
            for name, value, p_value in [
                ("mean discrepancy", f"{discrepancy.statistic:.2g}", discrepancy.p_value),
                ("classifier", f"{classifier.accuracy:.3f} right", classifier.p_value),
                ("calibration (KS)", f"{ranks.statistic:.3f}", ranks.p_value),
            ]
        ]
        if self.n_duplicates is not None:
            rows.append(("test points in training", f"{self.n_duplicates} of {self.n_test}"))
        lines = [f"{self.title}, {self.n_test} test points"]
        lines += [f"  {name:<26}{text}" for name, text in rows]
        lines += [f"  ({remark})" for remark in self.remarks]
        lines += ["  " + ", ".join(f"{k} {v}" for k, v in self.setting.items())]
        lines += [f"  ! {objection}" for objection in self.objections]
        return "\n".join(lines if self.objections else [*lines, "  no objection"])


def _agrees(estimate, expected):
    value, error = estimate
    return abs(value - expected) <= 4 * error + 1e-3  # what a normaliser may be off by
