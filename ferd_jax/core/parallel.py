"""The only file that knows devices: one step, three ways to map it.

A step `(state, batch, key, *, axis_name=None)` goes through `Parallel.compile`,
with specs that say which arguments are REPLICATED and which are SHARDED over
the examples. `jit` runs it on one device as it is; `pmap` maps it over the
devices of one process; `shard_map` over those of several processes, whose
arrays are global, as checkpoints need them. The numbers are the same.
"""

from collections.abc import Callable
import dataclasses
import enum
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from jax.sharding import Sharding
from jax.sharding import SingleDeviceSharding
import numpy as np

from ferd_jax.core import collectives
from ferd_jax.core import compilation
from ferd_jax.core import validate

MODES = ('auto', 'jit', 'pmap', 'shard_map')


class Spec(enum.Enum):
  """Where the leaves below a position of a pytree live."""
  REPLICATED = 'replicated'
  SHARDED = 'sharded'


REPLICATED, SHARDED = Spec.REPLICATED, Spec.SHARDED


@dataclasses.dataclass(frozen=True)
class Parallel:
  """How steps are mapped over devices.

  Attributes:
    mode: 'jit', 'pmap' or 'shard_map'.
    devices: those in use, of all processes.
  """
  mode: str
  devices: tuple[jax.Device, ...]

  @property
  def num_devices(self) -> int:
    return len(self.devices)

  @property
  def is_first(self) -> bool:
    """Whether this is the process that writes files."""
    return jax.process_index() == 0

  @property
  def description(self) -> dict[str, Any]:
    """What numbers were computed with, as JSON values."""
    return {'jax': jax.__version__, 'parallel': self.mode,
            'devices': [device.device_kind for device in self.devices]}

  @property
  def _compiler_options(self) -> dict[str, int | str]:
    return compilation.options(self.devices[0].platform)

  @property
  def _sharding(self) -> Sharding:
    if self.mode == 'jit':
      return SingleDeviceSharding(self.devices[0])
    return NamedSharding(self._mesh, PartitionSpec())

  @property
  def _mesh(self) -> Mesh:
    return Mesh(np.array(self.devices), (collectives.AXIS,),
                axis_types=(AxisType.Auto,))

  def compile(self, step: Callable, in_specs: tuple, out_specs: Any, *,
              donate: tuple[int, ...] = ()) -> Callable:
    """Returns `step` compiled and mapped over the devices.

    Args:
      step: takes positional arguments and `axis_name=None`.
      in_specs: a prefix pytree of `Spec`s per positional argument.
      out_specs: a prefix pytree of `Spec`s of the result.
      donate: positions of arguments whose buffers the result may reuse.
    """
    if self.mode == 'jit':
      return jax.jit(step, donate_argnums=donate,
                     compiler_options=self._compiler_options)
    if SHARDED not in jax.tree.leaves((in_specs, out_specs)):
      # Nothing to map: every device computes the same.
      return jax.jit(step, donate_argnums=donate, out_shardings=self._sharding,
                     compiler_options=self._compiler_options)
    step = functools.partial(step, axis_name=collectives.AXIS)
    if self.mode == 'pmap':
      return self._pmap(step, in_specs, out_specs, donate)
    def partition(specs):
      return jax.tree.map(
          lambda s: PartitionSpec(*() if s is REPLICATED else
                                  (collectives.AXIS,)), specs)
    # Without check_vma=False the gradients of replicated arguments arrive
    # already summed over devices, which pmap's do not.
    return jax.jit(
        jax.shard_map(step, mesh=self._mesh, in_specs=partition(in_specs),
                      out_specs=partition(out_specs), check_vma=False),
        donate_argnums=donate, compiler_options=self._compiler_options)

  def _pmap(self, step, in_specs, out_specs, donate):
    """Returns the step mapped by `pmap`, to which it gives leaves.

    Of arguments of which one is None, `pmap` may take a leaf of another for
    it (JAX 0.10 to 0.12). And it has no argument for compiler options: they
    are for who compiles it by himself, once for each structure and shapes.
    """
    def axis(spec):
      return None if spec is REPLICATED else 0

    @functools.cache
    def mapped(structure):
      def on_leaves(*leaves):
        return step(*structure.unflatten(leaves))
      numbered = structure.unflatten(range(structure.num_leaves))
      return jax.pmap(
          on_leaves, axis_name=collectives.AXIS,
          in_axes=tuple(map(axis, jax.tree.leaves(
              jax.tree.broadcast(in_specs, numbered)))),
          out_axes=jax.tree.map(axis, out_specs), devices=self.devices,
          donate_argnums=tuple(jax.tree.leaves(
              [numbered[position] for position in donate])))

    compiled = {}
    def call(*args):
      leaves, structure = jax.tree.flatten(args)
      if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return mapped(structure)(*leaves)
      kind = structure, tuple((np.shape(leaf), jnp.result_type(leaf))
                              for leaf in leaves)
      if kind not in compiled:
        compiled[kind] = mapped(structure).lower(*leaves).compile(
            compiler_options=self._compiler_options)
      return compiled[kind](*leaves)
    return call

  def replicate(self, tree: Any) -> Any:
    """Returns the pytree with every leaf on every device."""
    def place(leaf):
      if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype,
                                                        jax.dtypes.prng_key):
        # Typed keys cannot be put on several processes; their data can.
        data = jax.device_put(jax.random.key_data(leaf), self._sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
      return jax.device_put(leaf, self._sharding)
    return jax.tree.map(place, tree)

  def shard(self, tree: Any) -> Any:
    """Returns host arrays `[B, ...]` with their examples over the devices.

    Every process passes the whole batch and places the part of its devices.
    """
    if self.mode == 'jit':
      return jax.device_put(tree, self.devices[0])
    if self.mode == 'pmap':
      # pmap's own layout: a leading axis of devices.
      tree = jax.tree.map(
          lambda x: np.reshape(x, (self.num_devices, -1, *x.shape[1:])), tree)
    sharding = NamedSharding(self._mesh, PartitionSpec(collectives.AXIS))
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(
            x.shape, sharding, lambda index: x[index]), tree)

  def agreed(self, decision: bool) -> bool:
    """Returns the first process's decision, on every process.

    What clocks decide must not differ: the others would wait for ever.
    """
    if jax.process_count() == 1:
      return decision
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(decision)))

  def all_agree(self, opinion: bool) -> bool:
    """Returns whether all processes are of this opinion, on every process.

    What each of them reads may differ, for example on a disk that fails one.
    """
    if jax.process_count() == 1:
      return opinion
    return bool(multihost_utils.process_allgather(np.asarray(opinion)).all())

  def gather(self, tree: Any) -> Any:
    """Returns sharded arrays as host arrays `[B, ...]`, on every process."""
    if jax.process_count() > 1:
      tree = multihost_utils.process_allgather(tree, tiled=True)
    tree = jax.tree.map(np.asarray, tree)
    if self.mode == 'pmap':
      tree = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    return tree


def join_processes(coordinator: str | None = None,
                   num_processes: int | None = None,
                   process_id: int | None = None) -> None:
  """Joins the other processes of a run.

  Those of a TPU pod, a SLURM or an MPI job find each other; others are told,
  each of them.

  Must be called before devices are used.

  Args:
    coordinator: address and port of the first process, as the others reach
      it; None, as the next two, where JAX finds out.
    num_processes: how many there are.
    process_id: which of them this is, from 0.

  Raises:
    ValueError: for some of the three without the others or out of range, or
      if the processes do not find each other.
  """
  given = {'coordinator': coordinator, 'num_processes': num_processes,
           'process_id': process_id}
  absent = [name for name, value in given.items() if value is None]
  if 0 < len(absent) < len(given):
    raise ValueError(
        f'Expected --coordinator, --num_processes and --process_id together; '
        f'--{absent[0]} is absent.')
  if not absent:
    validate.count(num_processes=num_processes)
    validate.in_range(0, num_processes - 1, process_id=process_id)
    host, _, port = coordinator.rpartition(':')
    if not (host and port.isdigit()):
      raise validate.SettingError('coordinator', coordinator,
                                  'to be HOST:PORT of the first process.')
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (ValueError, RuntimeError) as error:
    raise ValueError(
        'Expected --distributed in a TPU pod or a SLURM or MPI job, or '
        '--coordinator, --num_processes and --process_id; JAX says: '
        f'{error}' if absent else
        f'Expected {num_processes} processes at {coordinator}; JAX says: '
        f'{error}') from error


def create(mode: str = 'auto',
           devices: tuple[jax.Device, ...] | None = None) -> Parallel:
  """Returns the mapping over the devices, by default all of all processes.

  Args:
    mode: 'auto' takes `jit` for one device, `pmap` for several of one process,
      `shard_map` for several processes. 'jit' uses the first device only.
    devices: those to use.

  Raises:
    ValueError: for an unknown mode, or `jit` or `pmap` with several processes.
  """
  validate.one_of(MODES, parallel=mode)
  devices = tuple(devices or jax.devices())
  processes = len({device.process_index for device in devices})
  if mode == 'auto':
    mode = ('jit' if len(devices) == 1 else
            'pmap' if processes == 1 else 'shard_map')
  if mode == 'jit':
    devices = devices[:1]
  if mode in ('jit', 'pmap') and processes > 1:
    raise ValueError(
        f'Expected parallel={mode!r} with one process, got {processes}; '
        'use parallel=shard_map.')
  return Parallel(mode, devices)
