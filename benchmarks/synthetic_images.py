"""What the synthetic images of finished runs are worth, in numbers.

  python benchmarks/synthetic_images.py runs/digits runs/digits_plus
  python benchmarks/synthetic_images.py runs/*/ --images=500 --output=found.json

Of each run, on images of its pool, evenly from all epochs, and as many of its
evaluation: how often the teacher predicts what an image was made for, and
still does so under PGD-20; the entropy of its predictions, in nats; how often
student and teacher agree; how often the student saw each image. Whether
robustness on synthetic images tells which classes are fragile: the rank
correlation (Spearman's) over classes of the teacher's PGD-20 accuracy on them,
and of the sampler's last fragility with its sign turned, with the teacher's on
real images.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from scipy import stats

# The package and its configs.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax import train
from ferd_jax.evaluation import robustness
from ferd_jax.models import forward
from ferd_jax.reports import records
from ferd_jax.run import experiment as experiments

_ATTACKS = ('clean', 'pgd20')


def _parser():
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  add = parser.add_argument
  add('runs', nargs='+', help='work directories of finished runs')
  add('--images', type=int, default=1000, help='of the pool, and real ones')
  add('--output', help='JSON file to write')
  return parser


def of_run(workdir: pathlib.Path, number: int) -> dict[str, Any]:
  """Returns what the images of a run are worth, JSON values by name.

  Args:
    workdir: of a finished run that has a teacher and keeps a pool.
    number: of images of the pool, and of real ones.

  Raises:
    records.Missing: without a pool, or results.
    ValueError: if the run cannot be built again.
  """
  run = records.read(workdir, str(workdir))
  budget, images = run.ended['budget'], _of_pool(run, number)
  config = experiments.saved_config(workdir)
  config.parallel = 'jit'
  experiment = experiments.build(config, to_train=False)
  examples = experiment.examples
  num_classes = len(examples.class_names)
  saved = train.saved_state(experiment, workdir)
  models = experiment.models(saved.state.student.reported)
  evaluator = dataclasses.replace(
      experiment.protocol, attacks=_ATTACKS).evaluator(
          models['teacher'][0], num_classes, experiment.parallel)
  chosen = np.linspace(0, len(examples.labels) - 1,
                       min(number, len(examples.labels))).astype(int)
  found, robust = {}, {}
  for name, (pixels, labels) in {
      'synthetic': images,
      'real': (examples.images[chosen], examples.labels[chosen])}.items():
    measured = evaluator(models['teacher'][1], pixels, labels,
                         jax.random.key(0), _ATTACKS)
    said = {which: _log_probs(model, variables, pixels,
                              evaluator.batch_of(pixels.shape))
            for which, (model, variables) in models.items()}
    kept, robust[name] = (_per_class(measured[attack]) for attack in _ATTACKS)
    found[name] = {
        'images': len(labels), 'agreement': measured['clean']['average'],
        'robust': measured['pgd20']['average'],
        'agreement_per_class': kept, 'robust_per_class': robust[name],
        'entropy': float(np.mean(stats.entropy(
            np.exp(said['teacher']), axis=-1))),
        'student_agrees': float(np.mean(
            said['student'].argmax(-1) == said['teacher'].argmax(-1)))}
  _, fragility = run.series('sampler/fragility')
  last = [-value for value in fragility[-1]] if fragility else None
  return {
      'run': run.title, 'seen': budget['student_steps'] * int(
          config.distill.batch_size) / budget['images'], **found,
      'rank_correlation': _spearman(robust['synthetic'], robust['real']),
      'rank_correlation_of_fragility': _spearman(last, robust['real'])}


def _of_pool(run, number):
  """Returns images and labels of a pool, evenly from all epochs."""
  epochs = run.pool_epochs()
  if not epochs:
    raise records.Missing('the run has kept no synthetic images')
  each = -(-number // len(epochs))
  images, labels = zip(*(
      (pixels[:each], labels[:each])
      for pixels, labels in map(run.pool, epochs)), strict=True)
  return np.concatenate(images), np.concatenate(labels).astype(np.int32)


def _log_probs(model, variables, images, batch_size):
  """Returns logarithms of a model's probabilities, `[N, K]`."""
  step = jax.jit(lambda variables, images: jax.nn.log_softmax(
      forward.logits(model, variables, images)))
  labels = np.zeros(len(images), np.int32)
  return np.concatenate([
      np.asarray(step(variables, batch.images))[batch.mask]
      for batch in robustness.batches(images, labels, batch_size)])


def _per_class(measured):
  """Returns accuracies of classes, None for one without images."""
  return [None if np.isnan(value) else value for value in measured['per_class']]


def _spearman(first, second):
  """Returns the rank correlation over the classes that both have."""
  if first is None:
    return None
  pairs = [pair for pair in zip(first, second, strict=True)
           if None not in pair]
  found = stats.spearmanr(*zip(*pairs, strict=True)).statistic
  return None if np.isnan(found) else float(found)


def _table(found):
  """Returns what is found of runs as a table in Markdown."""
  def percent(value):
    return f'{value:.1%}'
  def number(value):
    return '' if value is None else f'{value:.2f}'
  rows = [['run', 'images', 'teacher right', 'under PGD-20', 'worst class',
           'entropy', 'student agrees', 'seen', 'rank of robustness',
           'rank of fragility']]
  for each in found:
    for name in ('synthetic', 'real'):
      values = each[name]
      worst = min(value for value in values['robust_per_class']
                  if value is not None)
      rows.append([
          each['run'], f'{values["images"]} {name}',
          percent(values['agreement']), percent(values['robust']),
          percent(worst), number(values['entropy']),
          percent(values['student_agrees']), *(
              [f'{each["seen"]:.1f}', number(each['rank_correlation']),
               number(each['rank_correlation_of_fragility'])]
              if name == 'synthetic' else ['', '', ''])])
  rows.insert(1, ['---'] * len(rows[0]))
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the table."""
  args = _parser().parse_args(argv)
  try:
    found = [of_run(pathlib.Path(run), args.images) for run in args.runs]
  except (OSError, ValueError, records.Missing) as error:
    sys.exit(f'error: {error}')
  print(_table(found))
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  main()
