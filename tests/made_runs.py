"""Work directories as finished runs leave them, with numbers of one's own."""

import json

import numpy as np

from ferd_jax.evaluation import metrics
from ferd_jax.evaluation import per_image
from ferd_jax.run import settings
from ferd_jax.run import work_directory

LABELS = np.repeat(np.arange(4), 10)


def attack(correct, labels=LABELS, flags=True):
  """Returns what results say of an attack, given which images are right."""
  correct = np.asarray(correct, bool)
  labels = labels[:len(correct)]
  found, counts = (np.bincount(each, minlength=4)
                   for each in (labels[correct], labels))
  with np.errstate(invalid='ignore'):
    per_class = [None if np.isnan(value) else value
                 for value in (found / counts).tolist()]
  summary = metrics.summarise(found, counts) | {'per_class': per_class}
  if flags:
    summary[per_image.FLAGS] = per_image.flags_text(correct)
  if len(correct) < len(LABELS):
    summary['num_examples'] = len(correct)
  return summary


def right(*per_class):
  """Returns flags with so many of the ten images of each class right."""
  return np.concatenate([np.arange(10) < number for number in per_class])


def write(workdir, student, seed=0, teacher=None, *, name='made', flags=True,
          curve=(), finished=True, **changes):
  """Writes a run.

  Args:
    workdir: of it.
    student: flags `[N]` by attack.
    seed: of it.
    teacher: flags by attack.
    name: of its config.
    flags: whether they are kept.
    curve: accuracies of the classes under PGD-20 after each epoch.
    finished: whether it has results.
    **changes: of its settings, by dotted name with __ for dots.
  """
  config = settings.defaults()
  config.name, config.seed = name, seed
  config.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in changes.items()})
  workdir.mkdir(parents=True)
  (workdir / 'config.json').write_text(json.dumps(
      config.to_dict() | {'format': work_directory.FORMAT}))
  lines = [{'epoch': epoch, 'seconds': 30., 'devices': '1 x abacus',
            'synthesis/ms_per_step': 7., 'distill/ms_per_step': 9.,
            'test_pgd20': float(np.mean(classes)),
            'test_pgd20_worst': min(classes),
            'test_pgd20_per_class': list(classes)}
           for epoch, classes in enumerate(curve, 1)]
  (workdir / 'metrics.jsonl').write_text(
      ''.join(f'{json.dumps(line)}\n' for line in lines))
  if not finished:
    return
  models = {'teacher': teacher or {}, 'student': student}
  results = {
      'config': name, 'dataset': 'made', 'split': 'test', 'norm': 'Linf',
      'num_examples': len(LABELS), 'class_counts': [10] * 4, 'eps': 0.1,
      'seed': seed, 'weights_digest': {'teacher': 'one'},
      'budget': {'images': 1000, 'generator_steps': 20, 'student_steps': 300,
                 'teacher_forward': 4000., 'teacher_backward': 4000.,
                 'seconds': 90.},
      'models': {model: {key: attack(value, flags=flags)
                         for key, value in found.items()}
                 for model, found in models.items() if found}}
  if flags:
    results['labels'] = per_image.labels_text(LABELS)
  (workdir / 'results.json').write_text(json.dumps(results))
