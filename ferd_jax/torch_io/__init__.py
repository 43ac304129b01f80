"""PyTorch state dicts, from files and back, and the variables of models."""

from ferd_jax.models.registry import Layout
from ferd_jax.torch_io.files import check_format
from ferd_jax.torch_io.files import read_state_dict
from ferd_jax.torch_io.files import strip_prefixes
from ferd_jax.torch_io.files import write_state_dict
from ferd_jax.torch_io.layouts import definition
from ferd_jax.torch_io.mapping import FLOATS
from ferd_jax.torch_io.mapping import checked_values
from ferd_jax.torch_io.mapping import load_variables
from ferd_jax.torch_io.mapping import normalisation
from ferd_jax.torch_io.mapping import state_dict_from_variables
from ferd_jax.torch_io.mapping import torch_shapes
from ferd_jax.torch_io.mapping import variables_from_state_dict
from ferd_jax.torch_io.torch_modules import torch_module

__all__ = ['FLOATS', 'Layout', 'check_format', 'checked_values', 'definition',
           'load_variables', 'normalisation', 'read_state_dict',
           'state_dict_from_variables', 'strip_prefixes', 'torch_module',
           'torch_shapes', 'variables_from_state_dict', 'write_state_dict']
