"""Free-form injective flow: encoder and decoder are any networks, trained by a trace."""

import math

import torch
from torch import nn
from torch.func import vjp, vmap

from geoflow_plugin import geometry
from geoflow_plugin.distributions.injective import InjectiveFlow
from geoflow_plugin.distributions.injective_parts import ambient_space, latent_space
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.layers.embedding import Embedding

__all__ = ["FreeFormInjectiveFlow"]


class FreeFormInjectiveFlow(InjectiveFlow):
    r"""Injective flow whose map g and left inverse f are separate, unconstrained networks.

    Reconstruction makes f a left inverse of the decoder g. Where it is the pseudo-inverse,
    the gradient of the likelihood in the encoder is that of a trace,

    .. math::
        \nabla \log p(x) = \nabla \left[ \log p_U(f(x))
        + \operatorname{tr}\big( f'(x) \, \mathrm{sg}[g'(f(x))] \big) \right],

    sg being a constant, which random probes estimate without bias by one vector-Jacobian and
    one Jacobian-vector product each; f' is taken at the data point and not at its projection,
    which is what keeps curvature from growing (Sorrenson et al.). What is trained on has
    these gradients, and values that mean nothing (those of ``loss`` and of ``loss`` in
    ``history_``, too; validation has the exact volume); ``log_prob`` is the exact density of
    g(f(x)) by the decoder's volume change.

    Parameters
    ----------
    ambient_dim, space, base, low_layers, dim, reconstruction_weight, n_probes
        As for ``InjectiveFlow``.
    encoder : nn.Module, optional
        f: flat points (n, D) to (n, k), k being the entries of a latent point, on which they
        are projected. Default: a smooth perceptron with a linear shortcut.
    decoder : nn.Module, optional
        g: (n, k) to (n, D), smooth. Default: likewise.

    References
    ----------
    .. [SDRK24] P. Sorrenson, F. Draxler, A. Rousselot, S. Hummerich, L. Zimmermann,
       U. Köthe. "Lifting Architectural Constraints of Injective Flows", ICLR 2024.
    .. [DSZRK24] F. Draxler, P. Sorrenson, L. Zimmermann, A. Rousselot, U. Köthe. "Free-form
       Flows: Make Any Architecture a Normalizing Flow", AISTATS 2024.
    """

    def __init__(
        self,
        ambient_dim,
        space=None,
        base=None,
        low_layers=(),
        *,
        dim=None,
        encoder=None,
        decoder=None,
        reconstruction_weight=10.0,
        n_probes=1,
    ):
        ambient, latent = ambient_space(ambient_dim), latent_space(space, dim)
        sizes = math.prod(latent.shape), math.prod(ambient.shape)
        super().__init__(
            ambient,
            latent,
            base,
            low_layers,
            (),
            reconstruction_weight=reconstruction_weight,
            embedding=EncoderDecoder(*sizes, encoder, decoder),
            n_probes=n_probes,
        )

    def _training_terms(self, x, generator=None, context=None):
        flat = x.flatten(1)
        u, pull_back = vjp(lambda y: self._left_inverse(y, context)[0], flat)  # type: ignore[misc]
        probes = self._probes(u.detach(), generator)
        value, pushed = vmap(
            lambda probe: jvp(self._immerse, (u,), (probe,)),  # type: ignore[misc]
            out_dims=(None, 0),  # type: ignore[arg-type]
        )(probes)
        (pulled,) = vmap(pull_back)(probes)
        trace = (pulled * pushed.detach()).sum(-1).mean(0)
        trace = trace + geometry.log_volume_element(self.latent_space, u)
        return self._latent_log_prob(u, context, generator, training=True) + trace, value

    def _probes(self, u, generator):
        """Random tangent vectors (n_probes, n, *shape) with identity covariance."""
        basis = geometry.tangent_basis(self.latent_space, u).flatten(2)
        shape = (self.n_probes, len(u), 1, basis.shape[1])
        bits = torch.randint(0, 2, shape, generator=generator, device=u.device)
        return ((2 * bits - 1).to(u.dtype) @ basis).reshape(self.n_probes, *u.shape)


class EncoderDecoder(Embedding):
    """Two networks as an embedding and its left inverse, which they are once trained.

    Parameters
    ----------
    dim, ambient_dim : int
        k and D.
    encoder, decoder : nn.Module, optional
        (n, D) to (n, k), and back.
    """

    names = "decoder", "encoder"

    def __init__(self, dim, ambient_dim, encoder=None, decoder=None):
        super().__init__(dim, ambient_dim)
        for name, network in {"encoder": encoder, "decoder": decoder}.items():
            if network is not None and not isinstance(network, nn.Module):
                raise TypeError(
                    f"{name}: expected a torch.nn.Module, got {type(network).__name__}."
                )
        self.encoder = _Perceptron(ambient_dim, dim) if encoder is None else encoder
        self.decoder = _Perceptron(dim, ambient_dim) if decoder is None else decoder

    def forward(self, z):
        """Vectors (n, k) to (n, D)."""
        return self.decoder(z)

    def inverse(self, x):
        """Vectors (n, D) to (n, k)."""
        return self.encoder(x)


class _Perceptron(nn.Module):
    """Two smooth hidden layers beside a linear map."""

    def __init__(self, n_in, n_out, width=128):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.network = nn.Sequential(
            nn.Linear(n_in, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, n_out),
        )

    def forward(self, x):
        return self.linear(x) + self.network(x)
