"""All that is said of models in an evaluation, as JSON values.

A run's end and `python -m ferd_jax.evaluate` build their results here.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from etils import epath
from flax import linen as nn
import jax
import numpy as np

import ferd_jax
from ferd_jax import attacks
from ferd_jax import data
from ferd_jax.attacks import diagnosis
from ferd_jax.attacks import geometry
from ferd_jax.attacks import minimum_norm
from ferd_jax.attacks import saved
from ferd_jax.core import digests
from ferd_jax.core import memory
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.evaluation import curves
from ferd_jax.evaluation import finished
from ferd_jax.evaluation import per_image
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import tables
from ferd_jax.evaluation import target_analysis
from ferd_jax.evaluation import workload
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import mean_sparse
from ferd_jax.weights import loading


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is evaluated.

  Attributes:
    name: in tables.
    models: (module, variables) by name, any Flax modules.
    examples: images, labels and names of the classes.
    dataset: its name.
    split: of it, None for noise and for an .npz.
    eps: radius that the models were trained for, None if unknown.
    epoch: of a run's student, None for a file.
    about: what else the results say of it, JSON values.
    published: clean accuracy of the model or the teacher, None if unknown.
  """
  name: str
  models: Mapping[str, tuple[nn.Module, Any]]
  examples: data.Examples
  dataset: str
  split: str | None = None
  eps: float | None = None
  epoch: int | None = None
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  published: float | None = None


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How it is evaluated.

  Attributes:
    attacks: names, of `robustness.ATTACKS`.
    eps: radius in [0, 1] pixels.
    norm: of the attacks, one of `geometry.NORMS`.
    seed: said in the results; the key decides what is drawn.
    batch_size: images a step, over all devices.
    ddof: of the NSD.
    autoattack_examples: how many images, the first, AutoAttack gets; 0: all.
    target_examples: how many images, the first, are attacked towards every
      wrong class; 0: none, None: all.
    curve_radii: at which the accuracy that minimum-norm attacks leave is said;
      none: they do not run.
    curve_attacks: which of `minimum_norm.names` they are; None: the default.
    diagnosed_examples: on how many images, the first that are classified right,
      `attacks.diagnose` looks for masked gradients; 0: it does not.
  """
  attacks: tuple[str, ...]
  eps: float
  norm: geometry.Norm = 'Linf'
  seed: int = 0
  batch_size: int = 128
  ddof: int = 0
  autoattack_examples: int = 0
  target_examples: int | None = 0
  curve_radii: Sequence[float] = ()
  curve_attacks: Sequence[str] | None = None
  diagnosed_examples: int = 0

  @property
  def minimum_norm(self) -> minimum_norm.MinimumNorm:
    """What the curve is made by."""
    names = self.curve_attacks
    return minimum_norm.MinimumNorm(
        self.norm, None if names is None else tuple(names))

  def evaluator(self, model: nn.Module, num_classes: int,
                parallel: parallels.Parallel) -> robustness.Evaluator:
    """Returns what measures a model under these attacks."""
    return robustness.evaluator(
        model, self.attacks, self.eps, num_classes, self.batch_size, parallel,
        norm=self.norm, ddof=self.ddof,
        autoattack_examples=self.autoattack_examples)

  def target_analysis(self, model: nn.Module, num_classes: int,
                      parallel: parallels.Parallel
                      ) -> target_analysis.TargetAnalysis:
    """Returns what measures which targets a model is weak against."""
    return target_analysis.TargetAnalysis(
        model, target_analysis.targeted_pgd20(self.eps, self.norm),
        num_classes, self.batch_size, parallel)


def evaluate(subject: Subject, protocol: Protocol,
             parallel: parallels.Parallel, *, key: jax.Array | None = None,
             evaluators: Mapping[str, robustness.Evaluator] | None = None,
             state_dir: epath.PathLike | None = None,
             found_dirs: Mapping[str, epath.PathLike] | None = None,
             reporter: reporting.Reporter = reporting.SILENT
             ) -> dict[str, Any]:
  """Returns how robust and fair the models are, JSON values.

  Args:
    subject: what is evaluated.
    protocol: how.
    parallel: the device mapping.
    key: typed PRNG key of the attacks; default: that of the protocol's seed.
    evaluators: by model, those that are compiled already.
    state_dir: keeps every attack and table as soon as it is done, so that it
      is not repeated, and the state of an AutoAttack that is interrupted.
    found_dirs: by model, what keeps that which is done in its place, for other
      evaluations of the same model, too.
    reporter: told of every attack that is done.

  Raises:
    FloatingPointError: for logits that are not finite.
    ValueError: for a model or images that AutoAttack refuses.
  """
  images, labels = subject.examples.images, subject.examples.labels
  num_classes = len(subject.examples.class_names)
  key = jax.random.key(protocol.seed) if key is None else key
  number = protocol.target_examples
  number = len(labels) if number is None else number
  results = {
      'config': subject.name, 'dataset': subject.dataset,
      'split': subject.split, 'num_examples': len(labels),
      'class_counts': np.bincount(labels, minlength=num_classes).tolist(),
      'labels': per_image.labels_text(labels),
      'norm': protocol.norm, 'eps': protocol.eps, 'seed': protocol.seed,
      'epoch': subject.epoch, **subject.about,
      'weights_digest': {name: digests.of_arrays(variables)
                         for name, (_, variables) in subject.models.items()},
      'batch_size': protocol.batch_size, 'ferd_jax': ferd_jax.__version__,
      **parallel.description,
      'class_names': list(subject.examples.class_names), 'models': {}}
  if number:
    results['targets'] = {}
  if protocol.curve_radii:
    results['curves'] = {}
  epoch = f' of epoch {subject.epoch}' if subject.epoch else ''
  reporter.line(
      f'Evaluating {" and ".join(subject.models)}{epoch} on {len(labels)} '
      f'images, {protocol.norm} eps {protocol.eps:.5f}: '
      f'{", ".join(protocol.attacks)}.')
  with reporter.whole('evaluation', memory.text):
    expect(subject, protocol, reporter)
    for name, (model, variables) in subject.models.items():
      place = reporter.within(name)
      found_dir = (found_dirs or {}).get(name, state_dir)
      doubt = mean_sparse.doubt(model)
      if doubt:
        reporter.line(f'Warning: {doubt}')
      variables = parallel.replicate(variables)
      evaluator = (evaluators or {}).get(name) or protocol.evaluator(
          model, num_classes, parallel)
      results['models'][name] = found = evaluator(
          variables, images, labels, key, protocol.attacks,
          state_dir=state_dir, found_dir=found_dir,
          on_result=_teller(name, protocol, len(labels), num_classes, reporter),
          reporter=place)
      if doubt:  # What a table would hide.
        for attack, summary in found.items():
          if attack != robustness.CLEAN:
            summary['warnings'] = [*summary['warnings'], doubt]
      clean = found.get(robustness.CLEAN)
      if clean is not None and name != frozens.STUDENT:
        doubt = loading.implausible(clean['average'], len(labels), num_classes,
                                    subject.published)
        if doubt:
          reporter.line(f'Warning: {doubt}')
      if number:
        results['targets'][name] = _targets(
            protocol, model, variables, num_classes, images[:number],
            labels[:number], key, parallel, found_dir, place)
        place.remains({'targets': 0})
      if protocol.curve_radii:
        results['curves'][name] = curve = _curve(
            protocol, model, variables, num_classes, images, labels, key,
            parallel, found_dir, place)
        place.remains(dict.fromkeys(protocol.minimum_norm.names, 0))
        remark = mean_sparse.doubt(model)
        if remark:
          curve['warnings'] = [*curve['warnings'], remark]
      if protocol.diagnosed_examples:
        try:
          results.setdefault('diagnosis', {})[name] = _diagnosis(
              protocol, model, variables, images, labels, key, parallel,
              found_dir, place)
        except diagnosis.NothingToAttack as error:  # Its accuracies say so.
          reporter.line(f'Warning: {name} is not diagnosed. {error}')
        place.remains({'diagnose': 0})
  return tables.json_values(results)


def _diagnosis(protocol, model, variables, images, labels, key, parallel,
               found_dir, reporter):
  """Returns what `attacks.diagnose` says of a model, computed or kept."""
  number = protocol.diagnosed_examples
  # Also of a model that is wrong about half there are enough.
  images = robustness.as_float(images[:4 * number])
  labels = labels[:4 * number]
  each = -(-min(number, protocol.batch_size) // parallel.num_devices)
  def compute():
    return attacks.diagnose(
        jax.tree_util.Partial(functools.partial(forward.logits, model),
                              variables),
        key, images, labels, protocol.eps, norm=protocol.norm,
        num_images=number, batch_size=each * parallel.num_devices,
        progress=reporter, parallel=parallel).json_values()
  run = '' if found_dir is None else _run_of(
      protocol, model, variables, images, labels, key, f'{number} {each}')
  return finished.once(found_dir, 'diagnosis', run, compute, parallel, reporter)


def _run_of(protocol, model, variables, images, labels, key, more):
  """Returns a digest of all that decides what is found of a model."""
  return digests.of_arrays(
      (variables, images, labels, jax.random.key_data(key), np.frombuffer(
          '\n'.join([saved.described(model), more, protocol.norm,
                     repr(protocol.eps), jax.__version__,
                     ferd_jax.__version__]).encode(), np.uint8)))


def expect(subject: Subject, protocol: Protocol,
           reporter: reporting.Reporter) -> None:
  """Tells a reporter what an evaluation has to do.

  Args:
    subject: what is evaluated.
    protocol: how.
    reporter: estimates by it when all will be over.
  """
  if not reporter.active:
    return
  images = subject.examples.images
  for name, (model, variables) in subject.models.items():
    reporter.expect(workload.of_model(
        name, workload.operations(model, variables, images.shape[1:]),
        protocol, len(images), len(subject.examples.class_names)))


def _teller(name, protocol, num_images, num_classes, reporter):
  """Returns what tells of each attack on a model that is done."""
  found = {}
  def tell(attack, summary):
    found[attack] = summary
    reporter.line(f'{name}, {attack}: {summary["average"]:.2%}, worst class '
                  f'{summary["worst"]:.2%}')
    reporter.remains(workload.after(name, protocol, found, num_images,
                                    num_classes))
  return tell


def _targets(protocol, model, variables, num_classes, images, labels, key,
             parallel, found_dir, reporter):
  """Returns what is reported of the targets of a model, computed or kept."""
  def compute():
    analysis = protocol.target_analysis(model, num_classes, parallel)
    return analysis(variables, images, labels, key,
                    reporter=reporter).json_values()
  run = '' if found_dir is None else _run_of(
      protocol, model, variables, images, labels, key, str(num_classes))
  return finished.once(found_dir, 'targets', run, compute, parallel, reporter)


def _curve(protocol, model, variables, num_classes, images, labels, key,
           parallel, found_dir, reporter):
  """Returns the curve of a model, computed or kept."""
  def compute():
    return curves.curve(
        model, variables, images, labels, key, num_classes,
        protocol.minimum_norm, protocol.curve_radii, protocol.batch_size,
        parallel, ddof=protocol.ddof, reporter=reporter)
  run = '' if found_dir is None else _run_of(
      protocol, model, variables, images, labels, key,
      f'{num_classes} {saved.described(protocol.minimum_norm)} '
      f'{protocol.curve_radii} {protocol.ddof}')
  return finished.once(found_dir, 'curve', run, compute, parallel, reporter)
