"""Evaluation data: FERD itself trains without any."""

from ferd_jax.data.examples import DatasetInfo
from ferd_jax.data.examples import Examples
from ferd_jax.data.registry import NAMES
from ferd_jax.data.registry import blamed
from ferd_jax.data.registry import info
from ferd_jax.data.registry import load

__all__ = ['NAMES', 'DatasetInfo', 'Examples', 'blamed', 'info', 'load']
