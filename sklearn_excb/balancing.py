"""The balancing operator and the measurement of cluster sizes, for use outside a fit."""

from sklearn_excb.method.balancing import ClusterSizes, affine_form, balance

__all__ = ["ClusterSizes", "affine_form", "balance"]
