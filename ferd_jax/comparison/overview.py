"""What a comparison is going to do, and how runs that are there are called."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import time

from ferd_jax.comparison import outcomes
from ferd_jax.comparison import plan as plans
from ferd_jax.comparison import running
from ferd_jax.core import reporting
from ferd_jax.evaluation import tables
from ferd_jax.run import budget

ROWS = 'rows.json'  # names of the rows by directory


def show(plan: plans.Plan, runs: Sequence[plans.Run], workdir: pathlib.Path,
         estimate: running.Estimate, places: int) -> None:
  """Shows rows, budgets, what is done and how long the rest takes.

  Every row that is not finished is built, which finds what is wrong with it.

  Args:
    plan: of the comparison.
    runs: of it.
    workdir: of it.
    estimate: of the time.
    places: runs side by side.

  Raises:
    ValueError: for what is wrong with a row.
    OSError: if a file cannot be read.
  """
  states = {id(run): running.status(run) for run in runs}
  header = ['row', 'config', 'seeds', 'finished', 'images', 'generator steps',
            'teacher forward', 'teacher backward', 'student steps']
  rows, spent = [], []
  for row in plan.rows:
    own = [run for run in runs if run.row == row.name]
    found = _budget(own, states)
    spent.append(found)
    done = [str(run.seed) for run in own
            if states[id(run)] is running.Status.FINISHED]
    rows.append([row.name, row.config, ' '.join(str(r.seed) for r in own),
                 ' '.join(done), *('-' if value is None else f'{value:,.0f}'
                                   for value in found.values())])
  reporting.show('\n'.join(tables.markdown(header, rows)))
  todo = [run for run in runs
          if states[id(run)] is not running.Status.FINISHED]
  lines = [f'{len(runs)} runs in {workdir}, {places} at a time: '
           + ', '.join(f'{count} {state.value}' for state in running.Status
                       if (count := list(states.values()).count(state)))]
  left = estimate.left(todo)
  if todo:
    lines.append(
        'Time: unknown until the first run is done.' if left is None else
        f'Time: about {reporting.interval(left)}, until '
        f'{time.strftime("%a %H:%M", time.localtime(time.time() + left))}.')
  reporting.show('\n'.join([*lines, *unequal(
      [row.name for row in plan.rows], spent), '']))


def _budget(runs, states) -> dict[str, float | None]:
  """Returns what a run of a row spends; checks one of each that is to run."""
  todo = [run for run in runs
          if states[id(run)] is not running.Status.FINISHED]
  names = ('images', 'generator_steps', 'teacher_forward', 'teacher_backward',
           'student_steps')
  if not todo:
    outcome = outcomes.load(runs[0].workdir, runs[0].config.eval)
    found = outcome.results.get('budget', {})
    return {name: found.get(name) for name in names}
  experiment = plans.check(todo[0])
  for run in todo[1:]:
    if (run.workdir / 'config.json').exists():
      plans.check(run)
  found = vars(budget.of(experiment.method, runs[0].config.num_epochs))
  return {name: found[name] for name in names}


def unequal(names: Sequence[str],
            spent: Sequence[Mapping[str, float | None]]) -> Iterator[str]:
  """Yields a line for each quantity of which rows spend unlike the first.

  More than a tenth is unlike. Rows that make no images or do not ask a teacher
  to make them are named as such.

  Args:
    names: of the rows; the first is the reference.
    spent: by quantity, of each row; None if unknown.
  """
  for title in ('student steps', 'images', 'teacher passes'):
    values = [_passes(each) if title == 'teacher passes'
              else each[title.replace(' ', '_')] for each in spent]
    reference, apart, without = values[0], [], []
    for name, value, own in zip(names, values, spent, strict=True):
      if reference is None or value is None:
        continue
      if abs(value - reference) > 0.1 * reference + 1e-9:
        # Real images, or those that the student alone is asked for.
        exempt = own['images'] == 0 or (
            title == 'teacher passes' and not own['teacher_backward'])
        if exempt and title != 'student steps':
          without.append(repr(name))
        else:
          apart.append(f'{value:,.0f} for {name!r}')
    if apart or without:
      parts = [f'{reference:,.0f} for {names[0]!r}', *apart]
      line = f'Not equal: {title} are {", ".join(parts)}.' if apart else (
          f'{title.capitalize()} are {reference:,.0f} for {names[0]!r}.')
      if without:
        line += (f' {", ".join(without)}: real images, or made without the '
                 'teacher.')
      yield line


def _passes(found):
  pair = found['teacher_forward'], found['teacher_backward']
  return None if None in pair else sum(pair)


def named(found: Sequence[outcomes.Outcome],
          places: Sequence[pathlib.Path]
          ) -> Mapping[str, list[outcomes.Outcome]]:
  """Returns outcomes by the name of their row.

  Runs of a comparison have its names, others those of
  `outcomes.by_method`. Rows of one name are one method if their settings and
  images agree; else the later ones have their directory behind the name.

  Args:
    found: of finished runs.
    places: directories that they are in, of comparisons or of runs.

  Raises:
    ValueError: if runs of one name have a seed twice.
  """
  rows, others = {}, []
  for place in places:
    if (place / ROWS).exists():
      for directory, name in json.loads((place / ROWS).read_text()).items():
        rows[(place / directory).resolve()] = name
  groups = {directory: [] for directory in rows}
  for outcome in found:
    directory = outcome.workdir.resolve().parent
    (groups[directory] if directory in rows else others).append(outcome)
  methods = {}
  for directory, runs in groups.items():
    if runs:
      _add(methods, rows[directory], runs, directory.parent)
  for name, runs in outcomes.by_method(others).items():
    _add(methods, name, runs, runs[0].workdir.resolve().parent)
  for name, runs in methods.items():
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
      raise ValueError(f'{name} has a seed twice: {sorted(seeds)}.')
  return methods


def _add(methods, name, runs, place):
  """Adds the runs of a row to those of its name, or under a name of its own."""
  same = {outcomes.kind(run) for run in [*methods.get(name, []), *runs]}
  if len(same) > 1 and name in methods:
    taken = {name, *methods}
    name = f'{name} ({place.name})'
    if name in taken:
      name = f'{name.removesuffix(")")} in {place.parent})'
  methods.setdefault(name, []).extend(runs)
