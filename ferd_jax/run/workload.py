"""How much a run has to do: steps of each phase, and what comes with them.

By it the time left is estimated, see `core.schedule`. What a step costs is
counted in passes through the networks until it is measured; a generator's own
operations, a small part where teachers are large, are not known.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json

from ferd_jax.core import reporting
from ferd_jax.evaluation import workload
from ferd_jax.run import experiment as experiments
from ferd_jax.run import method as methods
from ferd_jax.run import networks

SYNTHESIS, DISTILL, EPOCH = 'synthesis', 'distill', 'epoch'
_ATTACK_STEPS = 10  # of an inner attack that does not say how many
# Forward passes of a gradient of the student's parameters, on clean images and
# on attacked ones.
_STUDENT_PASSES = 6


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a run has to do.

  Attributes:
    num_epochs: of the run.
    warmup_epochs: of them, the first, without the student.
    steps: of an epoch, by phase.
    batch_sizes: by phase.
    class_names: of the K classes.
    costs: operations of a step, by phase, 0 if unknown.
    learning_curve: works of one of its points, by name.
    curve_every: epochs between two points, 0 for none.
    evaluation: works of the evaluation at the end, by name.
    devices: that it runs on, as metrics name them.
  """
  num_epochs: int
  warmup_epochs: int = 0
  steps: Mapping[str, int] = dataclasses.field(
      default_factory=lambda: {SYNTHESIS: 0, DISTILL: 0})
  batch_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  class_names: Sequence[str] = ()
  costs: Mapping[str, float] = dataclasses.field(default_factory=dict)
  learning_curve: Mapping[str, reporting.Work] = dataclasses.field(
      default_factory=dict)
  curve_every: int = 0
  evaluation: Mapping[str, reporting.Work] = dataclasses.field(
      default_factory=dict)
  devices: str = ''

  def steps_until(self, phase: str, epoch: int) -> int:
    """Returns the steps of a phase in the epochs up to one."""
    before = self.warmup_epochs if phase == DISTILL else 0
    return max(0, epoch - before) * self.steps[phase]

  def points_after(self, epoch: int) -> int:
    """Returns how many points the learning curve has after an epoch."""
    if not self.curve_every:
      return 0
    last = self.num_epochs
    return sum(number % self.curve_every == 0 or number == last
               for number in range(epoch + 1, last + 1))

  def works(self, done_epochs: int, records: Sequence[str]
            ) -> dict[str, reporting.Work]:
    """Returns all that is left after some epochs, by name.

    Args:
      done_epochs: how many.
      records: of them, lines of metrics.jsonl: the speed of an earlier session
        on the same devices is that of this one.
    """
    last = json.loads(records[-1]) if len(records) > 1 else {}
    if last.get('devices') != self.devices:
      last = {}
    found = {}
    for phase in (SYNTHESIS, DISTILL):
      measured = last.get(f'{phase}/ms_per_step')
      found[phase] = reporting.Work(
          self.steps_until(phase, self.num_epochs)
          - self.steps_until(phase, done_epochs),
          self.costs.get(phase, 0.), phase,
          None if measured is None else measured / 1e3, 'training')
    found[EPOCH] = reporting.Work(self.num_epochs - done_epochs)
    found |= self.evaluation
    points = self.points_after(done_epochs)
    for name, work in self.learning_curve.items():
      at_the_end = found.get(name, reporting.Work(0)).units
      found[name] = dataclasses.replace(
          work, units=points * work.units + at_the_end)
    return found


def of(experiment: experiments.Experiment, devices: str,
       counted: bool = True) -> Workload:
  """Returns what a run has to do.

  Args:
    experiment: of it.
    devices: that it runs on, as metrics name them.
    counted: whether operations are, which takes a trace of each network;
      without them nobody can say when all will be over.
  """
  method, config = experiment.method, experiment.config
  synthesis, distillation = method.synthesis, method.distillation
  rounds, shape = synthesis.rounds, method.image_shape
  student = teacher = 0.
  if counted:
    student = workload.operations(
        distillation.student, networks.shapes('student', distillation.student,
                                              shape), shape)
  if counted and experiment.teacher is not None:
    teacher = workload.operations(
        experiment.teacher.model, experiment.teacher.variables, shape)
  protocol, num_classes = experiment.protocol, method.num_classes
  evaluation = {}
  for name, cost in (('teacher', teacher), ('student', student)):
    if cost:
      evaluation |= workload.of_model(
          name, cost, protocol, len(experiment.examples.labels), num_classes)
  curve = {} if not counted else workload.of_model(
      'student', student, dataclasses.replace(
          protocol, attacks=config.eval.curve_attacks, target_examples=0,
          curve_radii=(), diagnosed_examples=0),
      min(config.eval.curve_examples or len(experiment.validation.labels),
          len(experiment.validation.labels)), num_classes)
  return Workload(
      num_epochs=config.num_epochs, warmup_epochs=method.warmup_epochs,
      steps={SYNTHESIS: rounds.per_epoch * rounds.generator_steps,
             DISTILL: rounds.per_epoch * rounds.student_steps},
      batch_sizes={SYNTHESIS: synthesis.batch_size,
                   DISTILL: distillation.batch_size},
      class_names=tuple(experiment.examples.class_names),
      costs=_costs(method, teacher, student) if counted else {},
      learning_curve=curve,
      curve_every=config.eval.every, evaluation=evaluation, devices=devices)


def _costs(method: methods.Method, teacher: float, student: float
           ) -> dict[str, float]:
  """Returns the operations of a step, by phase."""
  synthesis, distillation = method.synthesis, method.distillation
  def passes(part):
    found = getattr(part, 'passes', None)
    return 0. if found is None else found.forward + found.backward
  inner = distillation.inner
  attack = getattr(inner, 'steps', _ATTACK_STEPS)
  asked = passes(inner) + len(distillation.reads_clean) + len(
      distillation.outer.needs.t_adv)
  return {
      SYNTHESIS: synthesis.batch_size * passes(synthesis) * teacher,
      DISTILL: distillation.batch_size * (
          asked * teacher + (2 * attack + _STUDENT_PASSES) * student)}

