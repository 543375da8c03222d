"""The map of a Moser flow: the field over the interpolated density, integrated."""

from normflows.flows import Flow

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.integrators import integrate

__all__ = ["MoserTransport"]


class MoserTransport(Flow):
    r"""Invertible map that carries the base of a Moser flow to its density.

    Integrates v_t = w / (1 - t + t r) from t = 0 (base) to 1 (data), with r the ratio
    of model to base: the vector field of Moser's theorem, the base cancelled from it.
    Where the model is positive the image of the base is the model, exactly; where r
    falls under the flow's floor its positive part stands in, and the image differs from
    ``log_prob`` by no more than about the negative mass. ``log_det`` is the integral of
    the divergence of v, hence that of the map in either case.

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
        self.moser_flow = moser_flow
        self.rtol, self.atol = rtol, atol
        self.n_evaluations = 0

    def forward(self, z):
        """Base points to data points and log |det|, shapes (n, *shape) and (n,)."""
        return self._solve(z, 0.0, 1.0)

    def inverse(self, z):
        """Data points to base points and log |det|, shapes (n, *shape) and (n,)."""
        return self._solve(z, 1.0, 0.0)

    def _solve(self, z, start, end):
        space = self.moser_flow.space
        geometry.check_points(space, z, "z")

        def velocity(t, x):
            def field(x):
                return self.moser_flow.velocity(t, x)

            return value_and_divergence(space, field, x)

        x, log_det, self.n_evaluations = integrate(
            space, velocity, z, start, end, rtol=self.rtol, atol=self.atol
        )
        return x, log_det

    def extra_repr(self):
        """Tolerances, for print."""
        return f"rtol={self.rtol}, atol={self.atol}"
