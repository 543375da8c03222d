"""The map of a Moser flow: the field over the interpolated density, integrated."""

from normflows.flows import Flow
from torch import nn

from geoflow_plugin import geometry
from geoflow_plugin.geometry.checks import check_positive
from geoflow_plugin.integrators import integrate

__all__ = ["MoserTransport"]


class MoserTransport(Flow):
    r"""Invertible map that carries the base of a Moser flow to its density.

    Integrates v_t = w / D_t, D_t = 1 - t + t c(r), from t = 0 (base) to 1 (data), with r
    the ratio of model to base and c(r) = max(r, floor): the vector field of Moser's
    theorem, the base cancelled from it. Along a path

    .. math::
        \frac{d}{dt}\left(\log\nu + \log D_t\right) + \mathrm{div}\, v_t
        = \frac{c(r) - r}{D_t},

    so the log-determinant needs no divergence of v: it is known in closed form but for
    the integral of the right-hand side, which is zero where the model is above the
    floor. Where that is everywhere, the image of the base is the model, exactly;
    otherwise it differs from ``log_prob`` by about the negative mass, while ``log_det``
    stays that of the map.

    Parameters
    ----------
    moser_flow : MoserFlow
    rtol, atol : float
        Tolerances of the adaptive solver (Dormand-Prince 5).

    Attributes
    ----------
    n_evaluations : int
        Field evaluations (each of the whole batch) of the last call.
    """

    def __init__(self, moser_flow, rtol=1e-5, atol=1e-6):
        super().__init__()
        if not hasattr(moser_flow, "field_and_ratio"):
            kind = type(moser_flow).__name__
            raise TypeError(f"moser_flow: expected a MoserFlow, got {kind}.")
        check_positive(rtol=rtol, atol=atol)
        if geometry.interpolation(moser_flow.space) is not None:
            raise TypeError(
                "moser_flow: its vector field jumps at the edges of its space, which no "
                "adaptive solver takes; sample and score without the map."
            )
        self.moser_flow = moser_flow
        self.rtol, self.atol = rtol, atol
        self.n_evaluations = 0

    @property
    def context_dim(self):
        """Columns of the context that the flow needs; None if it does not say."""
        return self.moser_flow.context_dim if self.moser_flow.conditional else 0

    def forward(self, z, context=None):
        """Base points to data points and log |det|, shapes (n, *shape) and (n,)."""
        return self._solve(z, 0.0, 1.0, context)

    def inverse(self, z, context=None):
        """Data points to base points and log |det|, shapes (n, *shape) and (n,)."""
        return self._solve(z, 1.0, 0.0, context)

    def _solve(self, z, start, end, context):
        flow = self.moser_flow
        geometry.check_points(flow.space, z, "z")
        context = flow._given(context, len(z)).get("context")
        x, excess, self.n_evaluations = integrate(
            flow.space,
            _Velocity(flow, context),
            z,
            start,
            end,
            rtol=self.rtol,
            atol=self.atol,
        )
        before = _log_interpolation(flow, z, start, context)
        change = before - _log_interpolation(flow, x, end, context)
        return x, change + excess

    def extra_repr(self):
        """Tolerances, for print."""
        return f"rtol={self.rtol}, atol={self.atol}"


def _log_interpolation(moser_flow, x, t, context):
    log_base = moser_flow._base_log_prob(x, context)
    if t == 0.0:
        return log_base
    return log_base + moser_flow.ratio(x, context).clamp_min(moser_flow.floor).log()


class _Velocity(nn.Module):
    """Moser's vector field at (t, x), and what the floor adds to the log density."""

    def __init__(self, moser_flow, context):
        super().__init__()
        self.moser_flow, self.context = moser_flow, context

    def forward(self, t, x):
        tangent_vec, ratio = self.moser_flow.field_and_ratio(x, self.context)
        kept = ratio.clamp_min(self.moser_flow.floor)
        interpolation = 1 - t + t * kept
        speed = interpolation.reciprocal().reshape(-1, *[1] * (x.ndim - 1))
        return speed * tangent_vec, (kept - ratio) / interpolation
