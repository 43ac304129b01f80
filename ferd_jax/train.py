"""A FERD run from top to bottom.

Every epoch: latents and labels ~ class weights -> generator -> FAEs -> pool;
after the warm-up, pool -> UTAEs -> student; the attacked teacher's margins ->
class weights of the next epoch.
"""

from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import functools
import json
import math
import sys
import time
from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import attacks
from ferd_jax import models
from ferd_jax.core import atomic
from ferd_jax.core import parallel as parallels
from ferd_jax.distillation import distill
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import tables
from ferd_jax.models import forward
from ferd_jax.run import experiment
from ferd_jax.run import export
from ferd_jax.run import progress as progresses
from ferd_jax.run import samples
from ferd_jax.run import state as states
from ferd_jax.run.learning_curve import LearningCurve
from ferd_jax.run.work_directory import RESULTS
from ferd_jax.run.work_directory import Checkpoints
from ferd_jax.synthesis import class_weights
from ferd_jax.synthesis import ferd
from ferd_jax.synthesis import pool as pools
from ferd_jax.weights import loading

EVALUATION = 'evaluation.json'  # of a saved student, at any time
_AUTOATTACK = 'autoattack'  # states of unfinished evaluations
REPLICATED, SHARDED = parallels.REPLICATED, parallels.SHARDED


class Steps(NamedTuple):
  """The compiled functions of a run."""
  init: Callable  # probs, indices, key -> SynthesisState
  synthesis: Callable  # SynthesisState, SynthesisBatch, key -> state, metrics
  margin_attack: Callable  # teacher, key, images, labels -> images
  measure: Callable  # ExampleState, attacked images, teacher -> margins
  student: Callable  # FerdState, StudentBatch, key -> state, metrics
  end_epoch: Callable  # FerdState, margins -> FerdState


def compile_steps(run: experiment.Experiment) -> Steps:
  """Returns the steps mapped over the devices of the run."""
  example_opt = jax.tree.map(
      lambda leaf: SHARDED if leaf.ndim else REPLICATED,
      jax.eval_shape(run.synthesis.latent_optimizer.init, jnp.zeros([1, 1])))
  phase = ferd.SynthesisState(
      generator=REPLICATED,
      examples=ferd.ExampleState(
          latents=SHARDED, opt_state=example_opt, labels=SHARDED,
          best_images=SHARDED, view=SHARDED))
  batch = distill.StudentBatch(images=SHARDED, labels=SHARDED,
                               teacher=REPLICATED)
  step, fixed = run.parallel.compile, functools.partial
  return Steps(
      init=step(fixed(ferd.init, run.synthesis),
                (REPLICATED, SHARDED, REPLICATED), phase),
      synthesis=step(fixed(ferd.step, run.synthesis),
                     (phase, REPLICATED, REPLICATED), (phase, REPLICATED),
                     donate=(0,)),
      margin_attack=attacks.jit(
          run.margin_attack, fixed(forward.logits, run.synthesis.teacher),
          run.parallel),
      measure=step(fixed(ferd.measure, run.synthesis),
                   (phase.examples, SHARDED, REPLICATED), REPLICATED),
      student=step(fixed(distill.step, run.distillation),
                   (REPLICATED, batch, REPLICATED), (REPLICATED, REPLICATED),
                   donate=(0,)),
      end_epoch=step(fixed(end_epoch, run.class_rule, run.distillation),
                     (REPLICATED, REPLICATED), REPLICATED))


def init_state(run: experiment.Experiment) -> states.FerdState:
  """Returns the state before the first epoch, on every device."""
  def init(key, *, axis_name=None):
    del axis_name  # Every device computes the same.
    student = models.init_variables(
        run.distillation.student, states.key_once(key, states.Once.STUDENT),
        run.image_shape)
    return states.FerdState(
        student=student,
        opt_state=run.distillation.optimizer.init(student['params']),
        class_weights=class_weights.init(run.num_classes),
        class_state=run.distillation.outer.init(run.num_classes),
        epoch=jnp.zeros([], jnp.int32), key=key)
  # Compiled, so that on several processes the state is made where it lives.
  return run.parallel.compile(init, (REPLICATED,), REPLICATED)(
      run.parallel.replicate(jax.random.key(run.config.seed)))


def end_epoch(rule: class_weights.Rule, settings: distill.Distillation,
              state: states.FerdState, margins: dict[str, jax.Array], *,
              axis_name: str | None = None) -> states.FerdState:
  """Returns the state with class weights and class state of the next epoch."""
  del axis_name  # The margins are sums over the global batch already.
  return state.replace(
      class_weights=class_weights.update(
          state.class_weights, margins['margin_sums'], margins['counts'],
          rule),
      class_state=settings.outer.end_epoch(state.class_state),
      epoch=state.epoch + 1)


def synthesise(run: experiment.Experiment, steps: Steps,
               state: states.FerdState, teacher: Any, key: jax.Array,
               progress: progresses.Progress
               ) -> tuple[np.ndarray, np.ndarray, dict[str, jax.Array], dict,
                          dict]:
  """Runs an epoch's generator phase.

  Args:
    run: the experiment.
    steps: its compiled functions.
    state: of the run.
    teacher: variables of the teacher, on every device.
    key: of this phase.
    progress: shows the steps.

  Returns:
    The FAEs `[B, H, W, C]`, their labels `[B]`, the margins that
    `ferd.measure` returns, metrics of the phase, and the variables of the
    generator after its last step.
  """
  warming_up = int(state.epoch) < run.config.warmup_epochs
  scale = float(run.config.synthesis.warmup_adv or not warming_up)
  batch = ferd.SynthesisBatch(
      teacher=teacher, student=state.student,
      adv_scale=run.parallel.replicate(jnp.float32(scale)))
  init_key, measure_key, *keys = _keys(
      run, key, run.config.synthesis.steps + 2)
  indices = run.parallel.shard(np.arange(run.synthesis.batch_size))
  phase = steps.init(state.class_weights.probs, indices, init_key)

  def generate():
    nonlocal phase
    for step_key in keys:
      phase, metrics = steps.synthesis(phase, batch, step_key)
      yield metrics
  metrics = _follow('generator', int(state.epoch), generate(), progress)
  examples = phase.examples
  attacked = steps.margin_attack(
      teacher, measure_key, ferd.margin_images(run.synthesis, examples),
      examples.labels, indices=indices)
  margins = steps.measure(examples, attacked, teacher)
  images, labels = run.parallel.gather(
      (examples.best_images, examples.labels))
  metrics |= {'kept_agreement': float(margins['agreement'])}
  generator = {'params': phase.generator.params,
               'batch_stats': phase.generator.batch_stats}
  return images, labels, margins, metrics, generator


def train_student(run: experiment.Experiment, steps: Steps,
                  state: states.FerdState, teacher: Any, pool: pools.Pool,
                  key: jax.Array, progress: progresses.Progress
                  ) -> tuple[states.FerdState, dict]:
  """Runs an epoch's student phase over the pool.

  Args:
    run: the experiment.
    steps: its compiled functions.
    state: of the run; its buffers are used up.
    teacher: variables of the teacher, on every device.
    pool: FAEs of this epoch and all before.
    key: of this phase.
    progress: shows the steps.

  Returns:
    The new state and metrics of the phase.
  """
  epoch = int(state.epoch)
  config = run.config.distill
  order_key, *keys = _keys(run, key, config.steps + 1)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))

  def distil():
    nonlocal state
    batches = pool.batches(rng, run.distillation.batch_size, config.steps)
    for step_key, (images, labels) in zip(keys, batches, strict=True):
      images, labels = run.parallel.shard((images, labels))
      batch = distill.StudentBatch(images, labels, teacher)
      state, metrics = steps.student(state, batch, step_key)
      yield metrics
  metrics = _follow('student', epoch, distil(), progress)
  return state, metrics


def train(run: experiment.Experiment, workdir: epath.PathLike, *,
          stop_after: int | None = None) -> dict | None:
  """Trains to the end, or goes on where the work directory stopped.

  Args:
    run: the experiment.
    workdir: for checkpoints, pool, metrics, sample grids and results; it must
      have been claimed (`checkpoint.claim`) for this run.
    stop_after: stop once so many epochs are completed.

  Returns:
    The results, also written to `results.json`; None if the run stopped before
    its last epoch, by `stop_after` or `config.max_minutes`.

  Raises:
    FloatingPointError: if a loss, or the state after an epoch, is not finite.
      The last saved epoch stays.
    OSError: if a file of the work directory cannot be read or written.
  """
  started = time.monotonic()
  workdir, config = epath.Path(workdir), run.config
  last_epoch = min(stop_after or config.num_epochs, config.num_epochs)
  state, steps = init_state(run), compile_steps(run)
  teacher = run.parallel.replicate(run.teacher.variables)
  size = config.synthesis.batch_size
  pool = pools.Pool.empty(config.num_epochs * size, run.image_shape,
                          config.pool.dtype)
  curve = LearningCurve(run)
  with (Checkpoints(workdir, config.eval.select) as checkpoints,
        contextlib.ExitStack() as stack):
    first_epoch = checkpoints.latest_epoch
    if first_epoch:
      state = checkpoints.restore(state, first_epoch)
      checkpoints.restore_pool(pool, first_epoch)
    root_key = _host_key(state)
    _announce(run, workdir, first_epoch, teacher, curve, root_key)
    progress = stack.enter_context(progresses.Progress(
        workdir, _steps_until(run, config.num_epochs), first_epoch,
        _steps_until(run, first_epoch)))
    for epoch in range(first_epoch + 1, last_epoch + 1):
      epoch_started = time.monotonic()
      expected = progress.last_epoch_seconds
      late = epoch_started + expected > started + 60 * config.max_minutes
      if run.parallel.agreed(expected > 0 and config.max_minutes > 0 and late):
        progress.line(f'Stopped after epoch {epoch - 1}: another may end after '
                      f'max_minutes={config.max_minutes:g}. The same command '
                      'goes on.')
        return None
      key = jax.random.fold_in(root_key, epoch)
      synthesis_key, student_key, curve_key = jax.random.split(key, 3)

      images, labels, margins, metrics, generator = synthesise(
          run, steps, state, teacher, synthesis_key, progress)
      pool.append(images, labels)
      if epoch > config.warmup_epochs:
        state, student_metrics = train_student(
            run, steps, state, teacher, pool, student_key, progress)
        metrics |= student_metrics
      state = steps.end_epoch(state, margins)
      _check_finite(state, epoch)

      metrics |= _class_metrics(state)
      metrics['devices'] = _devices(run)
      if _due(epoch, config.eval.every, last=config.num_epochs):
        metrics |= curve.point(state, teacher, pool, curve_key)
      metrics['seconds'] = time.monotonic() - epoch_started
      progress.epoch(epoch, config.num_epochs, metrics)
      if epoch == config.num_epochs and jax.process_index() == 0:
        export.save_generator(run, generator, workdir)
      checkpoints.save(epoch, state, pool, size, metrics)
      if _due(epoch, config.log.samples_every, last=config.num_epochs):
        _save_samples(workdir, run, epoch, images, labels)
  if last_epoch < config.num_epochs:
    return None
  return evaluate_run(run, workdir, final=True)


def evaluate_run(run: experiment.Experiment, workdir: epath.PathLike, *,
                 final: bool = False) -> dict:
  """Evaluates teacher and student and returns and writes the results.

  Args:
    run: the experiment.
    workdir: with a checkpoint; the epoch is chosen by `config.eval.select`.
    final: whether the run ends with it: the results become `results.json`
      instead of `evaluation.json`, and the student is exported for PyTorch.

  Raises:
    ValueError: if there is no checkpoint.
  """
  workdir, config = epath.Path(workdir), run.config
  state, epoch, last_epoch = saved_state(run, workdir)
  key = states.key_once(_host_key(state), states.Once.EVALUATION)
  teacher = run.parallel.replicate(run.teacher.variables)
  images, labels = run.examples.images, run.examples.labels
  names = tuple(config.eval.attacks)
  if jax.process_index() == 0:
    print(f'Evaluating teacher and student of epoch {epoch} on {len(labels)} '
          f'images: {", ".join(names)}.', file=sys.stderr)
  results = {
      'config': config.name, 'seed': config.seed, 'norm': 'Linf',
      'eps': config.eps,
      **data_source(config.data),
      'num_examples': len(labels), 'epoch': epoch,
      'class_counts': np.bincount(labels, minlength=run.num_classes).tolist(),
      'trained_epochs': last_epoch, 'num_epochs': config.num_epochs,
      'select': config.eval.select,
      'train_seconds': _train_seconds(workdir, epoch),
      **run.parallel.description, 'class_names': list(run.examples.class_names),
      'models': tables.json_values({
          name: evaluator(variables, images, labels, key, names,
                          state_dir=workdir / _AUTOATTACK)
          for name, evaluator, variables in (
              ('teacher', run.teacher_evaluator, teacher),
              ('student', run.student_evaluator, state.student))})}
  number = config.eval.target_examples
  if number:
    results['targets'] = tables.json_values({
        name: analysis(variables, images[:number], labels[:number],
                       key).json_values()
        for name, analysis, variables in (
            ('teacher', run.target_analysis(run.synthesis.teacher), teacher),
            ('student', run.target_analysis(run.synthesis.student),
             state.student))})
  if jax.process_index() == 0:
    if final:
      exported = export.write(run, state.student, results, workdir)
      print(f'Student for PyTorch: {exported}', file=sys.stderr)
    atomic.write_text(workdir / (RESULTS if final else EVALUATION),
                      json.dumps(results, indent=2, allow_nan=False) + '\n')
    if (workdir / _AUTOATTACK).exists():  # Its results are kept now.
      (workdir / _AUTOATTACK).rmtree()
  return results


def saved_state(run: experiment.Experiment, workdir: epath.PathLike
                ) -> tuple[states.FerdState, int, int]:
  """Returns the state to evaluate, its epoch and the last epoch saved.

  Args:
    run: the experiment.
    workdir: with a checkpoint; the epoch is chosen by `config.eval.select`.

  Raises:
    ValueError: if there is no checkpoint.
  """
  with Checkpoints(workdir, run.config.eval.select) as checkpoints:
    epoch, last_epoch = checkpoints.selected_epoch, checkpoints.latest_epoch
    if not epoch:
      raise ValueError(f'Expected a checkpoint in workdir={str(workdir)!r}; '
                       'train first.')
    return checkpoints.restore(init_state(run), epoch), epoch, last_epoch


def finished_results(workdir: epath.PathLike) -> dict | None:
  """Returns the results that a finished run left, None if it is not.

  Args:
    workdir: of the run.

  Raises:
    ValueError: if they are there and cannot be read.
  """
  path = epath.Path(workdir) / RESULTS
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'Cannot read {path}: {error}') from error


def _follow(phase: str, epoch: int, metrics: Iterable[dict],
            progress: progresses.Progress) -> dict:
  """Runs a phase's steps and returns its mean metrics and time per step.

  The metrics of a step are read once the next one is dispatched, so that the
  device never waits for the host.
  """
  started, seen = time.monotonic(), []

  def read(values):
    values = {name: float(value) for name, value in values.items()}
    seen.append(values)
    for name, value in values.items():
      if not math.isfinite(value):
        raise FloatingPointError(
            f'Not finite: {name}={value} at epoch {epoch + 1}, {phase} step '
            f'{len(seen)}.' + _kept(epoch))
    progress.step(phase, values)

  previous = None
  for current in metrics:
    if previous is not None:
      read(previous)
    previous = current
  read(previous)
  milliseconds = (time.monotonic() - started) / len(seen) * 1e3
  mean = {f'{phase}/{name}': float(np.mean([values[name] for values in seen]))
          for name in seen[0]}
  return mean | {f'{phase}/ms_per_step': milliseconds}


def _announce(run: experiment.Experiment, workdir: epath.Path,
              first_epoch: int, teacher: Any, curve: LearningCurve,
              key: jax.Array) -> None:
  """Prints where the run is and, at its start, how good the teacher is."""
  text = f'{run.config.name} in {workdir}, {_devices(run)}'
  if first_epoch:
    text += f': going on after epoch {first_epoch}/{run.config.num_epochs}'
  else:
    # What no key of a file reveals, such as a wrong normalisation, shows here.
    found = run.teacher_evaluator(teacher, curve.images, curve.labels, key,
                                  (robustness.CLEAN,))
    accuracy = found[robustness.CLEAN]['average']
    text += f'; teacher clean {accuracy:.1%} of {len(curve.labels)} images'
    doubt = loading.implausible(accuracy, len(curve.labels), run.num_classes,
                                run.published)
    text += f'\nTeacher: {run.teacher}' + (f'\nWarning: {doubt}' if doubt
                                           else '')
  if jax.process_index() == 0:
    print(text, file=sys.stderr)


def _devices(run: experiment.Experiment) -> str:
  devices = run.parallel.devices
  return (f'{len(devices)} x {devices[0].device_kind}, {run.parallel.mode}, '
          f'jax {jax.__version__}')


def _check_finite(state: states.FerdState, epoch: int) -> None:
  """Raises FloatingPointError unless all that would be saved is finite."""
  state = state.replace(key=())
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if not np.all(np.isfinite(np.asarray(leaf))):
      raise FloatingPointError(
          f'Not finite: {jax.tree_util.keystr(path)} after epoch {epoch}.'
          + _kept(epoch - 1))


def _kept(epoch: int) -> str:
  return f' The checkpoint of epoch {epoch} is kept.' if epoch else ''


def _class_metrics(state: states.FerdState) -> dict:
  """Returns the class weights for the log."""
  weights = jax.tree.map(np.asarray, state.class_weights)
  # A starved class has probability 0 in float32; its logarithm is kept finite.
  lowest = max(weights.probs.min(), np.finfo(np.float32).tiny)
  return {'min_log_prob': float(np.log(lowest)),
          'max_prob': float(weights.probs.max()),
          'probs': weights.probs.tolist(),
          'fragility': weights.fragility.tolist()}


def _save_samples(workdir, run, epoch, images, labels):
  if jax.process_index() == 0:
    samples.save_grid(
        workdir / 'samples' / f'epoch_{epoch:05d}.png',
        samples.sample_grid(images, labels, run.num_classes))


def data_source(data: Any) -> dict[str, str | None]:
  """Returns where the images of an evaluation come from."""
  if data.noise_examples:
    return {'dataset': f'noise shaped like {data.name}', 'split': None}
  return {'dataset': data.name, 'split': data.split}


def _train_seconds(workdir: epath.Path, epoch: int) -> float:
  """Returns the seconds of training up to an epoch, over all sessions."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  epochs = (json.loads(line) for line in lines)
  return sum(e['seconds'] for e in epochs if e['epoch'] <= epoch)


def _keys(run: experiment.Experiment, key: jax.Array,
          number: int) -> list[jax.Array]:
  """Returns the keys of a phase's steps, on every device."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(number))
  return [run.parallel.replicate(keys[i]) for i in range(number)]


def _host_key(state: states.FerdState) -> jax.Array:
  """Returns the root key on this host's default device."""
  return jax.random.wrap_key_data(np.asarray(jax.random.key_data(state.key)))


def _steps_until(run: experiment.Experiment, epoch: int) -> int:
  """Returns the number of steps of the epochs up to `epoch`."""
  trained = max(0, epoch - run.config.warmup_epochs)
  return (epoch * run.config.synthesis.steps
          + trained * run.config.distill.steps)


def _due(epoch: int, every: int, last: int) -> bool:
  return bool(every) and (epoch % every == 0 or epoch == last)


