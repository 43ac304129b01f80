"""A run from top to bottom.

Every epoch: latents and labels ~ class probabilities -> generator -> FAEs ->
pool; after the warm-up, pool -> UTAEs -> student; and what the sampler wants
to know of the epoch's images, FERD's the margins of the attacked teacher, ->
class probabilities of the next epoch. Real images can take the place of the
FAEs: a run that reads some says so.
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import json
import time
from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import numpy as np

from ferd_jax.core import atomic
from ferd_jax.core import compilation
from ferd_jax.core import errors
from ferd_jax.core import reporting
from ferd_jax.core import scalars
from ferd_jax.distillation import distill
from ferd_jax.evaluation import results as evaluations
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import tables
from ferd_jax.models import frozen as frozens
from ferd_jax.run import budget as budgets
from ferd_jax.run import checkpoints as checkpointing
from ferd_jax.run import doubts
from ferd_jax.run import epoch_metrics
from ferd_jax.run import experiment as experiments
from ferd_jax.run import export
from ferd_jax.run import lock
from ferd_jax.run import method as methods
from ferd_jax.run import progress as progresses
from ferd_jax.run import samples
from ferd_jax.run import sessions
from ferd_jax.run import state as states
from ferd_jax.run import step_log
from ferd_jax.run import work_directory
from ferd_jax.run import workload as workloads
from ferd_jax.synthesis import device_pool
from ferd_jax.synthesis import pool as pools
from ferd_jax.synthesis import real as reals
from ferd_jax.weights import loading

EVALUATION = 'evaluation.json'  # of a saved student, at any time
_FOUND = 'evaluation'  # What an evaluation that is not finished has found.
# Tags of keys beside those of steps, which are counted from below.
_ROUNDS, _IMAGES, _MEASURED, _PHASES, _REAL = (
    2 ** 32 - 1 - i for i in range(5))


class Epoch(NamedTuple):
  """What an epoch made.

  Attributes:
    state: of the run afterwards.
    images: `[B, H, W, C]`, on the host, of the last round.
    labels: int `[B]`, those that they were made for.
    metrics: means over the steps of each phase, `synthesis/...` and
      `distill/...`.
    judged: what the teacher says of the images as they joined the pool, on the
      host; None without a teacher or a pool.
    pairs: of the last student step, on the devices; None without one.
  """
  state: states.TrainState
  images: np.ndarray
  labels: np.ndarray
  metrics: dict[str, float]
  judged: methods.Judgement | None
  pairs: distill.Pairs | None


def epoch_keys(state: states.TrainState) -> list[jax.Array]:
  """Returns the keys of an epoch: its synthesis, student and evaluation."""
  key = jax.random.fold_in(states.host_key(state), int(state.epoch) + 1)
  return list(jax.random.split(key, 3))


def epoch(method: methods.Method, steps: methods.Steps,
          state: states.TrainState, teachers: dict[str, Any],
          pool: pools.Pool, on_step: step_log.OnStep | None = None) -> Epoch:
  """Computes an epoch; nothing is displayed, and no file touched.

  Args:
    method: what is trained and how.
    steps: its compiled functions.
    state: of the run; its buffers are used up.
    teachers: variables by name, on every device.
    pool: of the images so far, which gets those of this epoch.
    on_step: called with the phase and the metrics of every step.

  Raises:
    FloatingPointError: if a metric of a step is not finite.
  """
  synthesis, rounds = method.synthesis, method.synthesis.rounds
  number = int(state.epoch)
  synthesis_key, student_key, _ = epoch_keys(state)
  # Steps count upwards from here, the streams of other keys down from the top.
  generator_keys = _keys(method, synthesis_key, 2)
  student_keys = _keys(method, student_key, 1)
  image_keys = _keys(method, _stream(synthesis_key, _IMAGES), 0)
  fresh_keys = _keys(method, _stream(student_key, _IMAGES), 0)
  real = _real(method, _stream(student_key, _REAL), state.sampler.probs)
  logs = {phase: step_log.StepLog(phase, number + 1, on_step)
          for phase in ('synthesis', 'distill')}

  student, judged, pairs = state.student, None, None
  frozen = frozens.Frozen(teachers, student.reported, state.epoch)
  indices = method.parallel.shard(np.arange(synthesis.batch_size))

  def begin(key: jax.Array, number: int) -> Any:
    return steps.begin(kept, state.sampler.probs, indices,
                       _key(method, key, number))
  kept = state.synthesis
  phase = begin(synthesis_key, 0)
  for number_of_round in range(rounds.per_epoch):
    if number_of_round and rounds.pooled:
      kept = steps.end(kept, phase)
      phase = begin(_stream(synthesis_key, _PHASES), number_of_round)
    phase = synthesise(steps, phase, frozen, generator_keys,
                       rounds.generator_steps, logs['synthesis'])
    made = None
    if rounds.pooled:
      images, labels = steps.images(phase, frozen, next(image_keys),
                                    *next(real))
      made = method.parallel.gather((images, labels))
      pool.append(*made)
      if frozens.ROBUST in teachers:
        judged = _on_host(method, steps.judge(images, labels, frozen))
    if number >= method.warmup_epochs:
      order_key = jax.random.fold_in(
          _stream(student_key, _ROUNDS) if number_of_round else student_key,
          number_of_round)
      next_batch = (_pooled(method, pool, order_key) if rounds.pooled else
                    _fresh(steps, phase, frozen, fresh_keys, real))
      student, pairs = train_student(
          steps, student, frozen.replace(student=None), next_batch,
          student_keys, rounds.student_steps, logs['distill'])
      frozen = frozen.replace(student=student.reported)
  measured, made = _measured(method, steps, phase, frozen, synthesis_key, made,
                             real)
  sampler, inner, outer, done = steps.end_epoch(
      state.sampler, student.inner, student.outer, state.epoch, measured)
  state = state.replace(
      student=student.replace(inner=inner, outer=outer), sampler=sampler,
      synthesis=steps.end(kept, phase), epoch=done)
  images, labels = made
  metrics = logs['synthesis'].means() | logs['distill'].means()
  return Epoch(state, images, labels, metrics, judged, pairs)


def synthesise(steps: methods.Steps, phase: Any, frozen: frozens.Frozen,
               keys: Iterator[jax.Array], num_steps: int,
               log: step_log.StepLog) -> Any:
  """Returns the synthesis' state after a round of generator steps.

  Args:
    steps: compiled functions.
    phase: state of the synthesis; its buffers are used up.
    frozen: teachers, student and epoch.
    keys: of the steps.
    num_steps: how many.
    log: gets the metrics.
  """
  step = steps.generate
  if step is None:  # The synthesis takes no generator steps.
    return phase

  def generate() -> Iterator[scalars.Scalars]:
    nonlocal phase
    for _ in range(num_steps):
      phase, metrics = step(phase, frozen, next(keys))
      yield metrics
  log.follow(generate())
  return phase


def train_student(steps: methods.Steps, student: distill.StudentState,
                  frozen: frozens.Frozen,
                  next_batch: Callable[[Any], distill.StudentBatch],
                  keys: Iterator[jax.Array], num_steps: int,
                  log: step_log.StepLog
                  ) -> tuple[distill.StudentState, distill.Pairs | None]:
  """Returns the student after a round of student steps, and what it saw last.

  Args:
    steps: compiled functions.
    student: its buffers are used up.
    frozen: teachers and epoch.
    next_batch: variables of the student, averaged if they are -> the batch of
      its next step.
    keys: of the steps.
    num_steps: how many.
    log: gets the metrics.
  """
  pairs: distill.Pairs | None = None

  def distil() -> Iterator[scalars.Scalars]:
    nonlocal student, pairs
    for _ in range(num_steps):
      batch = next_batch(student.reported)
      student, metrics, pairs = steps.student(student, batch, frozen,
                                              next(keys))
      yield metrics
  log.follow(distil())
  return student, pairs


def _pooled(method, pool, key):
  """Returns what gives a round's batches from the pool, on the devices."""
  batches = pool.placed(key, method.distillation.batch_size,
                        method.synthesis.rounds.student_steps, method.parallel)
  def next_batch(student):
    del student
    return distill.StudentBatch(*next(batches))
  return next_batch


def _fresh(steps, phase, frozen, keys, real):
  """Returns what gives a round's batches, each made for its step alone."""
  def next_batch(student):
    return distill.StudentBatch(*steps.images(
        phase, frozen.replace(student=student), next(keys), *next(real)))
  return next_batch


def _real(method, key, probs):
  """Yields what `images` is given besides: a batch of real ones, or nothing.

  As many as an epoch needs, with one to measure.
  """
  synthesis, rounds = method.synthesis, method.synthesis.rounds
  if not rounds.reads_data:
    yield from itertools.repeat(())
  calls = rounds.per_epoch * (1 if rounds.pooled else rounds.student_steps)
  for batch in reals.batches(method.training_data, np.asarray(probs), key,
                             synthesis.batch_size, calls + 1):
    yield (method.parallel.shard(batch),)


def _measured(method, steps, phase, frozen, key, made, real):
  """Returns what the sampler measures, and images to show, on the host."""
  measurement = method.sampler.measurement
  if measurement is None and made is not None:
    return None, made
  images, labels = steps.measured_images(
      phase, frozen, _key(method, _stream(key, _IMAGES), _MEASURED),
      *next(real))
  made = made or method.parallel.gather((images, labels))
  if measurement is None:
    return None, made
  variables = (frozen.student if measurement.network == frozens.STUDENT
               else frozen.teachers[measurement.network])
  if steps.attack is not None:
    indices = method.parallel.shard(np.arange(method.synthesis.batch_size))
    images = steps.attack(variables, _key(method, key, 1), images, labels,
                          indices=indices)
  return steps.measure(images, labels, variables), made


def train(experiment: experiments.Experiment, workdir: epath.PathLike, *,
          stop_after: int | None = None,
          reporter: reporting.Reporter = reporting.TERMINAL) -> dict | None:
  """Trains to the end, or goes on where the work directory stopped.

  Args:
    experiment: what to run.
    workdir: for checkpoints, pool, metrics, sample grids and results; it is
      claimed for this run, and its lock is held.
    stop_after: stop once so many epochs are completed.
    reporter: shows where it is.

  Returns:
    The results, also written to `results.json`; None if the run stopped before
    its last epoch, by `stop_after` or `config.max_minutes`.

  Raises:
    FloatingPointError: if a loss, or the state after an epoch, is not finite.
      The last saved epoch stays.
    OSError: if a file of the work directory cannot be read or written.
    ValueError: if the work directory is another run's, or somebody works in it.
  """
  workdir = epath.Path(workdir)
  with (lock.held(workdir, reporter) as owned,
        reporter.kept(workdir / work_directory.LOG),
        contextlib.ExitStack() as stack):
    work_directory.check(workdir, experiment.identity, reporter=reporter)
    sessions.begin(workdir)
    progress = _train(experiment, workdir, stop_after, reporter, owned, stack)
    if progress is None:
      return None
    with sessions.timed(workdir, sessions.EVALUATION):
      results = _evaluate(experiment, workdir, True, reporter)
    progress.results(results)
    return results


def _train(experiment, workdir, stop_after, reporter, owned, stack):
  """Trains, and returns the progress if all epochs are done, else None."""
  started, config = time.monotonic(), experiment.config
  method, steps = experiment.method, experiment.steps
  last_epoch = config.num_epochs if stop_after is None else min(
      stop_after, config.num_epochs)
  teachers = experiment.place_teachers()
  curve, made = experiment.learning_curve, _images_per_epoch(method)
  pool = device_pool.create(
      config.pool.place, config.num_epochs * made, method.image_shape,
      config.pool.dtype, method.parallel)
  warned: set[str] = set()  # of which doubts in the epoch before
  with checkpointing.Checkpoints(
      workdir, method, config.eval.select,
      identity=experiment.identity) as checkpoints:
    state, first_epoch, metrics_so_far = checkpoints.resume(
        experiment.initial_state(config.seed), pool, made, reporter)
    _announce(experiment, workdir, first_epoch, teachers,
              states.host_key(state), reporter)
    progress = stack.enter_context(progresses.Progress(
        workdir, workloads.of(experiment, _devices(method), reporter.active),
        first_epoch, reporter, metrics_so_far, writers=config.log.writers,
        identity=experiment.identity))
    programs = stack.enter_context(compilation.counted())
    for number in range(first_epoch + 1, last_epoch + 1):
      progress.begin(number)
      epoch_started, compiling = time.monotonic(), programs.seconds
      expected = progress.last_epoch_seconds
      late = epoch_started + expected > started + 60 * config.max_minutes
      if method.parallel.agreed(
          expected > 0 and config.max_minutes > 0 and late):
        reporter.line(
            f'Stopped after epoch {number - 1}: another may end after '
            f'max_minutes={config.max_minutes:g}. The same command goes on.')
        return None
      *_, curve_key = epoch_keys(state)
      with _last_good(number - 1):
        done = epoch(method, steps, state, teachers, pool, progress.step)
        state = done.state
        gathered = states.gathered(method, state)
        _check_finite(gathered, number)
      metrics = done.metrics | epoch_metrics.of_pool(
          done.labels, done.judged, method.num_classes)
      metrics |= epoch_metrics.of_budget(method, number)
      metrics |= epoch_metrics.of_sampler(state.sampler)
      _warn(doubts.of_epoch(metrics, done.images, method.num_classes), number,
            warned, reporter)
      metrics['devices'] = _devices(method)
      if _due(number, config.eval.every, last=config.num_epochs):
        metrics |= curve.point(
            state.student.reported, teachers.get(frozens.ROBUST), pool,
            curve_key, reporter)
      metrics['seconds'] = time.monotonic() - epoch_started
      metrics['compile_seconds'] = programs.seconds - compiling
      if owned is not None:
        owned.confirm()
      progress.epoch(number, metrics)
      checkpoints.save(number, gathered, pool, made, progress.lines)
      if _due(number, config.log.samples_every, last=config.num_epochs):
        progress.pictures(number, _samples(method, steps, teachers, done),
                          config.eps, np.asarray(state.sampler.probs))
  progress.end()
  return progress if last_epoch == config.num_epochs else None


def evaluate_run(experiment: experiments.Experiment, workdir: epath.PathLike,
                 *, reporter: reporting.Reporter = reporting.TERMINAL) -> dict:
  """Evaluates student and teacher, if any, and writes the results.

  They become `evaluation.json`; what the run itself found stays. Each attack
  and table is kept as soon as it is finished, and is not repeated if the
  evaluation is interrupted.

  Args:
    experiment: of the run.
    workdir: with a checkpoint; the epoch is chosen by `config.eval.select`.
      Its lock is held.
    reporter: shows how far it is.

  Raises:
    ValueError: if there is no checkpoint, the directory is another run's, or
      somebody works in it.
  """
  workdir = epath.Path(workdir)
  with (lock.held(workdir, reporter),
        reporter.kept(workdir / work_directory.LOG)):
    work_directory.check(workdir, experiment.identity, start=False,
                         reporter=reporter)
    return _evaluate(experiment, workdir, False, reporter)


def _evaluate(experiment, workdir, final, reporter):
  """Returns and writes results; if they are the run's own, exports besides."""
  saved = saved_state(experiment, workdir)
  subject = run_subject(
      experiment, workdir, saved.state, saved.epoch,
      trained_epochs=saved.last_epoch,
      train_seconds=progresses.train_seconds(saved.metrics[:saved.epoch]),
      budget=dataclasses.asdict(
          budgets.of(experiment.method, saved.last_epoch)) | {
              'seconds': progresses.train_seconds(saved.metrics)})
  protocol, found = experiment.protocol, workdir / _FOUND
  shared = experiment.config.eval.teacher_dir
  if found.exists() and not found.is_dir() and jax.process_index() == 0:
    checkpointing.put_aside(found, workdir / checkpointing.DAMAGED / _FOUND)
  results = evaluations.evaluate(
      subject, protocol, experiment.parallel,
      key=states.key_once(states.host_key(saved.state),
                          states.Once.EVALUATION),
      evaluators=experiment.evaluators, state_dir=found,
      found_dirs={'teacher': shared} if shared else None, reporter=reporter)
  if jax.process_index() == 0:
    if final:
      exported, missing = export.write(experiment, saved.state, results,
                                       workdir)
      for line in (*missing, f'The student, for PyTorch and JAX: {exported}'):
        reporter.line(line)
    atomic.write_text(
        workdir / (work_directory.RESULTS if final else EVALUATION),
        json.dumps(results, indent=2, allow_nan=False) + '\n')
    if found.exists():  # Its results are kept now.
      found.rmtree()
    reporter.note(tables.text(results))
  return results


def run_subject(experiment: experiments.Experiment, workdir: epath.PathLike,
                state: states.TrainState, epoch_number: int,
                **about: Any) -> evaluations.Subject:
  """Returns student and teacher, if any, of a run, to evaluate.

  Args:
    experiment: of the run.
    workdir: of the run, which knows whether it was data-free.
    state: of the epoch to evaluate.
    epoch_number: that epoch.
    **about: what else its results say, JSON values.
  """
  config = experiment.config
  noise = config.data.noise_examples
  training_data = work_directory.training_data(workdir)
  if training_data is not None:
    about['training_data'] = training_data
  return evaluations.Subject(
      name=config.name, examples=experiment.examples,
      dataset=f'noise shaped like {config.data.name}' if noise
      else config.data.name, split=None if noise else config.data.split,
      eps=config.eps, epoch=epoch_number, published=experiment.published,
      about={'num_epochs': config.num_epochs, 'select': config.eval.select,
             **about},
      models=experiment.models(state.student.reported))


class SavedState(NamedTuple):
  """A state to evaluate.

  Attributes:
    state: of the run.
    epoch: completed epochs.
    last_epoch: the last one that is saved.
    metrics: the lines of metrics.jsonl, up to the last epoch where they are
      kept.
  """
  state: states.TrainState
  epoch: int
  last_epoch: int
  metrics: list[str]


def saved_state(experiment: experiments.Experiment, workdir: epath.PathLike
                ) -> SavedState:
  """Returns the state to evaluate; nothing is written.

  Args:
    experiment: of the run.
    workdir: with a checkpoint; the epoch is chosen by `config.eval.select`.

  Raises:
    ValueError: if there is no checkpoint, or it is of another version.
    OSError: if it cannot be read.
  """
  method, config = experiment.method, experiment.config
  with checkpointing.Checkpoints(
      workdir, method, config.eval.select) as checkpoints:
    number, last_epoch = checkpoints.selected_epoch, checkpoints.latest_epoch
    if not number:
      raise ValueError(f'Expected a checkpoint in workdir={str(workdir)!r}; '
                       'train first.')
    state = checkpoints.restore(experiment.initial_state(config.seed), number)
    try:
      metrics = checkpoints.metrics(last_epoch)
    except OSError:  # Damage of a checkpoint that is not evaluated.
      metrics = checkpoints.metrics(number)
    if metrics is None:  # Of a version that kept none.
      metrics = progresses.lines(workdir, last_epoch)
    return SavedState(state, number, last_epoch, metrics)


def finished_results(workdir: epath.PathLike,
                     reporter: reporting.Reporter = reporting.TERMINAL
                     ) -> dict | None:
  """Returns the results that a finished run left, None if it is not.

  Results that cannot be read are put aside if a checkpoint can be evaluated
  again.

  Args:
    workdir: of the run.
    reporter: told about such results.

  Raises:
    ValueError: if they cannot be read, and no checkpoint is there.
  """
  path = epath.Path(workdir) / work_directory.RESULTS
  try:
    results = json.loads(path.read_text())
    tables.text(results)  # It needs all that there is.
    return results
  except FileNotFoundError:
    return None
  except Exception as error:  # Anything may be in there.
    damage = f'Cannot read {path}: {_what(error)}.'
  if not work_directory.saved_epochs(workdir):
    raise ValueError(f'{damage} There is no checkpoint to evaluate again: '
                     'without this file the run starts anew.')
  if jax.process_index() == 0:
    checkpointing.put_aside(
        path, path.parent / checkpointing.DAMAGED / path.name)
  reporter.line(f'Warning: {damage} The run is evaluated again.')
  return None


def _what(error):
  """Returns what is wrong with JSON values, as a reader of them raised it."""
  if isinstance(error, OSError | ValueError):
    return errors.reason(error)
  return f'it holds no results ({type(error).__name__})'


def _warn(found, number, warned, reporter):
  """Shows what an epoch is the first in a row to be doubtful in."""
  for kind, text in found.items():
    if kind not in warned:
      reporter.line(f'Warning: in epoch {number} {text}.')
  warned.clear()
  warned.update(found)


def _announce(experiment, workdir, first_epoch, teachers, key, reporter):
  """Shows where the run is and, at its start, what it learns from."""
  config = experiment.config
  text = f'{config.name} in {workdir}, {_devices(experiment.method)}'
  for doubt in (
      *doubts.of_settings(config, experiment.identity['step_size']),
      *doubts.of_precision(config.precision, {
          'student': experiment.student, **{
              'teacher' if name == frozens.ROBUST else f'teacher {name!r}':
              loaded.model for name, loaded in experiment.teachers.items()}},
                           experiment.method.image_shape)):
    reporter.line(f'Warning: {doubt}')
  if first_epoch:
    reporter.line(f'{text}: going on after epoch {first_epoch}/'
                  f'{config.num_epochs}')
  training_data = experiment.identity.get(work_directory.TRAINING_DATA)
  if training_data is not None:
    reporter.line(tables.not_data_free(training_data))
  if first_epoch:
    return
  if experiment.teacher is None:
    reporter.line(f'{text}; without a teacher')
    return
  # What no key of a file reveals, such as a wrong normalisation, shows here.
  curve = experiment.learning_curve
  found = experiment.evaluators['teacher'](
      teachers[frozens.ROBUST], curve.images, curve.labels, key,
      (robustness.CLEAN,), reporter=reporter.within('teacher'))
  accuracy = found[robustness.CLEAN]['average']
  reporter.line(f'{text}; teacher clean {accuracy:.1%} of '
                f'{len(curve.labels)} images')
  for name, loaded in experiment.teachers.items():
    other = '' if name == frozens.ROBUST else f' {name!r}'
    reporter.line(f'Teacher{other}: {loaded}')
  doubt = loading.implausible(accuracy, len(curve.labels),
                              experiment.method.num_classes,
                              experiment.published)
  if doubt:
    reporter.line(f'Warning: {doubt}')


def _devices(method):
  devices = method.parallel.devices
  return (f'{len(devices)} x {devices[0].device_kind}, {method.parallel.mode}, '
          f'jax {jax.__version__}')


@contextlib.contextmanager
def _last_good(number):
  """Adds to what is not finite which checkpoint is kept."""
  try:
    yield
  except FloatingPointError as error:
    kept = f' The checkpoint of epoch {number} is kept.' if number else ''
    raise FloatingPointError(f'{error}{kept}') from error


def _check_finite(state: states.TrainState, number: int) -> None:
  """Raises FloatingPointError unless all that would be saved is finite."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(
      states.without_keys(state)):
    if not np.all(np.isfinite(np.asarray(leaf))):
      raise FloatingPointError(
          f'Not finite: {jax.tree_util.keystr(path)} after epoch {number}.')


def _samples(method, steps, teachers, done):
  """Returns what is shown of an epoch, on the host."""
  judged, pairs = done.judged, done.pairs
  if judged is None and frozens.ROBUST in teachers:
    judged = _on_host(method, steps.judge(
        *method.parallel.shard((done.images, done.labels)),
        frozens.Frozen(teachers, None, done.state.epoch)))
  return samples.choose(
      done.images, done.labels, method.num_classes,
      None if judged is None else (judged.labels, judged.confidence),
      None if pairs is None else method.parallel.gather(
          (pairs.images, pairs.attacked, pairs.labels)))


def _on_host(method, judged):
  """Returns a judgement as arrays of this host."""
  labels, confidence = method.parallel.gather(
      (judged.labels, judged.confidence))
  return methods.Judgement(np.asarray(judged.agreement), labels, confidence)


def _key(method, key, number):
  """Returns a key of a phase, on every device."""
  return method.parallel.replicate(jax.random.fold_in(key, number))


def _stream(key, tag):
  """Returns the root of keys that are apart from those of an epoch's steps."""
  return jax.random.fold_in(key, tag)


def _keys(method, key, first) -> Iterator[jax.Array]:
  """Yields the keys of a phase's steps from a number on, on every device."""
  number = first
  while True:
    yield _key(method, key, number)
    number += 1


def _images_per_epoch(method):
  """Returns how many images an epoch adds to the pool."""
  rounds = method.synthesis.rounds
  return rounds.pooled * rounds.per_epoch * method.synthesis.batch_size


def _due(number: int, every: int, last: int) -> bool:
  return bool(every) and (number % every == 0 or number == last)
