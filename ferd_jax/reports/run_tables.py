"""The tables of one run: teacher beside student, class by class, what it is."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from ferd_jax.comparison import markdown
from ferd_jax.core import reporting
from ferd_jax.evaluation import metrics
from ferd_jax.reports import records
from ferd_jax.run import sessions

Rows = list[list[str]]


def summary(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
  """Returns header and rows of results: teacher beside student.

  Args:
    results: of a run.
  """
  models = results['models']
  # Older results have no success rates.
  rated = any('success_rate' in values for found in models.values()
              for values in found.values())
  measures = ('average', *(('success rate',) if rated else ()), 'worst class',
              'NSD')
  header = ['attack', *(f'{model} {measure}' for model in models
                        for measure in measures)]
  rows = []
  for attack in dict.fromkeys(
      attack for found in models.values() for attack in found):
    count = min(found[attack].get('num_examples', results['num_examples'])
                for found in models.values() if attack in found)
    title = markdown.attack_title(attack)
    row = [title if count >= results['num_examples'] else
           f'{title} (first {count})']
    for found in models.values():
      if attack not in found:
        row += ['-'] * len(measures)
        continue
      values = found[attack]
      row.append(f'{values["average"]:.2%}')
      if rated:
        rate = values.get('success_rate')
        row.append('-' if rate is None else f'{rate:.2%}')
      row += [f'{values["worst"]:.2%}',
              '-' if values.get('nsd') is None else f'{values["nsd"]:.3f}']
    rows.append(row)
  return header, rows


def by_class(results: Mapping[str, Any], names: Sequence[str]
                  ) -> tuple[list[str], Rows]:
  """Returns header and rows of the accuracy of each class, in percent."""
  models = results['models']
  columns = [(model, attack) for model, found in models.items()
             for attack in found]
  header = ['class', *(f'{model} {markdown.attack_title(attack)}'
                       for model, attack in columns)]
  rows = []
  for i, name in enumerate(names):
    row = [name]
    for model, attack in columns:
      value = models[model][attack]['per_class'][i]
      row.append('-' if value is None else f'{100 * value:.1f}')
    rows.append(row)
  fairness = ['Gini']
  for model, attack in columns:
    known = np.array([value for value in models[model][attack]['per_class']
                      if value is not None], float)
    value = float(metrics.gini(known)) if known.size else math.nan
    fairness.append(f'{value:.3f}' if math.isfinite(value) else '-')
  return header, [*rows, fairness]


def settings(run: records.Run) -> tuple[Rows, Rows]:
  """Returns rows of the settings that are no defaults, and of all others.

  Args:
    run: the first have the default in a third column.
  """
  differ, same = records.differing(run.identity)
  return ([[name, _shown(value), _shown(default)]
           for name, value, default in differ],
          [[name, _shown(value)] for name, value in same])


def _shown(value):
  if value is None:
    return 'unset'
  if isinstance(value, float):
    return f'{value:.6g}'
  if isinstance(value, list | tuple):
    return ', '.join(map(_shown, value)) or 'none'
  return str(value)


def made_by(run: records.Run) -> Rows:
  """Returns rows of how a run was made: command, versions, hardware, seed."""
  rows = []
  for number, session in enumerate(run.sessions, 1):
    name = f'command {number}' if len(run.sessions) > 1 else 'command'
    rows.append([name, f'{session.get("command", "?")}  ({_when(session)})'])
  if not run.sessions:
    rows.append(['command', 'not recorded by the version that made the run'])
  last = run.sessions[-1] if run.sessions else {}
  versions = last.get('versions') or {
      name: run.identity.get(name) or (run.results or {}).get(name)
      for name in ('ferd_jax', 'jax')}
  rows.append(['versions', ', '.join(
      f'{name} {version}' for name, version in versions.items() if version)])
  hardware = last.get('hardware')
  if hardware:
    rows.append(['hardware', '; '.join(
        f'{name} {value}' for name, value in hardware.items())])
  devices = dict.fromkeys(str(epoch['devices']) for epoch in run.metrics
                          if 'devices' in epoch)
  rows.append(['trained on', '; '.join(devices) or 'not recorded'])
  rows.append(['seed', str(run.identity.get('seed', 'not recorded'))])
  for name, digest in run.identity.get('teacher_digests', {}).items():
    rows.append([f'teacher ({name})', f'sha256 of its weights {digest[:16]}'])
  training = run.identity.get('training_data')
  rows.append(['training data', 'none: data-free' if training is None else
               f'{training["num_examples"]:,} real images, '
               f'{training["dataset"]} {training["split"]}'])
  return rows


def _when(session):
  return str(session.get('started', 'no time')).replace('+00:00', ' UTC')


def cost(run: records.Run) -> Rows:
  """Returns rows of what a run spent: time by phase, images, passes."""
  rows = []
  total = sum(epoch.get('seconds', 0.) for epoch in run.metrics)
  rows.append(['epochs', f'{len(run.metrics)} of '
               f'{run.identity.get("num_epochs", "?")}'])
  rows.append(['time of all epochs', reporting.interval(total)])
  known, speeds = 0., []
  for phase, title in (('synthesis', 'generator steps'),
                       ('distill', 'student steps')):
    found = [epoch[f'{phase}/seconds'] for epoch in run.metrics
             if f'{phase}/seconds' in epoch]
    if found:
      known += sum(found)
      rows.append([f'of it, {title}', f'{reporting.interval(sum(found))} '
                   f'({sum(found) / total:.0%})' if total else '0'])
    speed = [epoch[f'{phase}/ms_per_step'] for epoch in run.metrics
             if f'{phase}/ms_per_step' in epoch]
    if speed:
      speeds.append([f'milliseconds a step, {phase}',
                     f'{np.median(speed[1:] or speed):.1f} (median)'])
  compiling = sum(epoch.get('compile_seconds', 0.) for epoch in run.metrics)
  if compiling:
    rows.append(['of it, compiling', reporting.interval(compiling)])
  if known and total:
    rows.append(['of it, the rest: learning curve, margins',
                 reporting.interval(max(0., total - known - compiling))])
  rows += speeds
  ended = [session[sessions.EVALUATION] for session in run.sessions
           if sessions.EVALUATION in session]
  rows.append(['time of the final evaluation', reporting.interval(sum(ended))
               if ended else 'not recorded'])
  budget = (run.results or {}).get('budget')
  if budget is None:
    rows.append(['images and passes', 'not recorded: the run has not ended, or '
                 'an older version did not count them'])
    return rows
  for name, title in (('images', 'synthetic images'),
                      ('generator_steps', 'generator steps'),
                      ('student_steps', 'student steps'),
                      ('teacher_forward', 'images through the teacher'),
                      ('teacher_backward', 'images back through it')):
    value = budget.get(name)
    rows.append([title, 'unknown' if value is None else f'{value:,.0f}'])
  return rows
