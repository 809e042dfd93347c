"""From a function to its switching values: the only room that touches jax.extend."""

from jaxregions.tracing.bounds import bounded_outputs, bounded_values, largest_bound, prepare
from jaxregions.tracing.changes import changed_outputs, pieces_of
from jaxregions.tracing.flatten import NotPiecewiseAffineError
from jaxregions.tracing.gradients import bounded_gradient, prepare_reverse
from jaxregions.tracing.levels import level_values, levels_of
from jaxregions.tracing.network import CPAFunction, Stage, fixed_signs, trace
from jaxregions.tracing.rational import exact_outputs, exact_values
from jaxregions.tracing.representations import exact_representation, representation
from jaxregions.tracing.structure import compiled
from jaxregions.tracing.walk import Group, is_slot

__all__ = [
    "CPAFunction",
    "Group",
    "NotPiecewiseAffineError",
    "Stage",
    "bounded_gradient",
    "bounded_outputs",
    "bounded_values",
    "changed_outputs",
    "compiled",
    "exact_outputs",
    "exact_representation",
    "exact_values",
    "fixed_signs",
    "is_slot",
    "largest_bound",
    "level_values",
    "levels_of",
    "pieces_of",
    "prepare",
    "prepare_reverse",
    "representation",
    "trace",
]
