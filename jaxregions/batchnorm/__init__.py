"""Batch statistics, their hyperplanes, and models conditioned on a batch or freed of BatchNorm."""

from jaxregions.batchnorm.first_layer import BatchHyperplanes, batch_hyperplanes, centroid
from jaxregions.batchnorm.models import condition, without_batchnorm

__all__ = [
    "BatchHyperplanes",
    "batch_hyperplanes",
    "centroid",
    "condition",
    "without_batchnorm",
]
