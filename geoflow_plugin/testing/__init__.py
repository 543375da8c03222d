"""The laws of a space and of a distribution, as suites that strangers can run.

    check_space(my_space)                  # after registering on geoflow_plugin.geometry
    check_distribution(my_distribution)

Both return the figures they measured, by law, and raise ``AssertionError`` with every law
that fails. A law that asks for what nobody registered (say, a logarithm) is left out.
"""

from geoflow_plugin.testing.distributions import check_distribution
from geoflow_plugin.testing.spaces import check_space

__all__ = ["check_distribution", "check_space"]
