"""The plug-in: ``space.equip_with_distribution``, the one attribute we add to geomstats."""

from geomstats.geometry.manifold import Manifold

from geoflow_plugin.distributions.base import Distribution
from geoflow_plugin.distributions.kernel_density import KernelDensity
from geoflow_plugin.distributions.monge_ampere import MongeAmpereFlow
from geoflow_plugin.distributions.moser import MoserFlow
from geoflow_plugin.distributions.uniform import Uniform
from geoflow_plugin.distributions.wrapped_normal import WrappedNormal

__all__ = [
    "available_distributions",
    "equip_with_distribution",
    "register",
    "register_distribution",
    "unregister",
]

_DISTRIBUTIONS: dict[str, type] = {}


def register_distribution(name):
    """Class decorator that makes a distribution known by name.

    Parameters
    ----------
    name : str
        What ``equip_with_distribution`` and ``available_distributions`` call it.

    Raises
    ------
    TypeError
        If the name is no string, or the class has no ``log_prob`` and ``sample``.
    ValueError
        If another class has the name.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: expected a non-empty string, got {name!r}.")

    def decorator(cls):
        if not (hasattr(cls, "log_prob") and hasattr(cls, "sample")):
            raise TypeError(f"register_distribution: {cls!r} has no log_prob and sample.")
        known = _DISTRIBUTIONS.get(name)
        if known is not None and known is not cls:
            raise ValueError(
                f"name: {name!r} already stands for {known.__qualname__}; choose another."
            )
        _DISTRIBUTIONS[name] = cls
        return cls

    return decorator


for _name, _cls in {
    "uniform": Uniform,
    "wrapped_normal": WrappedNormal,
    "kernel_density": KernelDensity,
    "moser": MoserFlow,
    "monge_ampere": MongeAmpereFlow,
}.items():
    register_distribution(_name)(_cls)


def available_distributions(space):
    """Sorted names of the registered distributions that support a space.

    Parameters
    ----------
    space : geomstats Manifold

    Returns
    -------
    names : list of str
        Empty if the plugin does not know the space.
    """
    return sorted(
        name
        for name, cls in _DISTRIBUTIONS.items()
        if getattr(cls, "supports", lambda space: True)(space)
    )


def distribution_named(name, space):
    """The class that a name stands for; the error says which there are for the space."""
    if name not in _DISTRIBUTIONS:
        raise ValueError(
            f"distribution: {name!r} is not registered; available for this space are "
            f"{available_distributions(space)}."
        )
    return _DISTRIBUTIONS[name]


def equip_with_distribution(space, distribution="moser", **kwargs):
    """Equip a space with a distribution, in the manner of ``equip_with_metric``.

    Parameters
    ----------
    space : geomstats Manifold
    distribution : str, class or distribution
        A registered name, a class that takes the space first, or an object made for
        this very space.
    **kwargs
        Passed to the class.

    Returns
    -------
    space : geomstats Manifold
        The same object; the distribution is its attribute ``distribution``. It refuses
        to answer once the metric of the space has been changed.

    Raises
    ------
    ValueError
        For an unknown name, a distribution of another space, or arguments for one that
        exists already.
    TypeError
        For anything else, or an unsupported space.
    """
    if isinstance(distribution, str):
        distribution = distribution_named(distribution, space)
    if isinstance(distribution, type):
        if not hasattr(distribution, "log_prob"):
            raise TypeError(
                f"distribution: {distribution.__qualname__} has no log_prob, so it is no "
                "class of distributions."
            )
        space.distribution = distribution(space, **kwargs)
        return space
    if not isinstance(distribution, Distribution):
        raise TypeError(
            "distribution: expected a registered name, a class or a distribution, got "
            f"{type(distribution).__name__}."
        )
    if distribution.space is not space:
        raise ValueError("distribution: it was made for another space object.")
    if kwargs:
        raise ValueError(
            f"distribution: exists already, so it takes no arguments {sorted(kwargs)}."
        )
    space.distribution = distribution
    return space


def register():
    """Give every geomstats manifold ``equip_with_distribution``; done on import."""
    Manifold.equip_with_distribution = equip_with_distribution


def unregister():
    """Take ``equip_with_distribution`` back from geomstats; idempotent."""
    if "equip_with_distribution" in vars(Manifold):
        del Manifold.equip_with_distribution
