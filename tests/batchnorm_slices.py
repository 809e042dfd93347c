"""BatchNorm at initialisation: all hyperplanes of layer 1 meet in the batch centroid."""

import numpy as np
from batchnorm_models import initial_variables

import jaxregions as jr
from jaxregions import zoo


def at_centroid(width, d, k):
    """A conditioned one-layer network, and a k-dimensional slice through its batch's centroid."""
    rng = np.random.default_rng(width)
    batch = rng.normal(size=(50, d))
    model = zoo.MLP(widths=(width,))
    f = jr.condition(model, initial_variables(model, batch), batch, train=False)
    p, basis = jr.centroid(batch), np.linalg.qr(rng.normal(size=(d, k)))[0]
    center = p + basis @ np.full(k, 0.1)
    return jr.trace(f, batch[0]), jr.Window(center[None], 0.5, basis=basis, anchor=p)
