"""The report: one HTML file with all of its pictures in it, and no script."""

import base64
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import datetime
import functools
import html
import pathlib
import re

from matplotlib import figure as figures

import ferd_jax
from ferd_jax.attacks import diagnosis
from ferd_jax.comparison import markdown
from ferd_jax.core import reporting
from ferd_jax.evaluation import tables
from ferd_jax.reports import class_tables
from ferd_jax.reports import comparison_plots
from ferd_jax.reports import drawing
from ferd_jax.reports import embedding
from ferd_jax.reports import plots
from ferd_jax.reports import records
from ferd_jax.reports import run_tables

Draw = Callable[[float], figures.Figure]
_NO_NETWORKS = 'left out: --no-networks'

# Of each run by itself: what files are called by, title, what is seen.
_OF_A_RUN = {
    'classes': (
        'Accuracy of each class', plots.class_bars,
        'Percent of the images of a class that are classified right under each '
        'attack. Hatched, with a red number: the worst class.'),
    'classes_over_epochs': (
        'Classes over epochs', plots.class_curves,
        'Accuracy of the student on each class at points of the learning '
        'curve, in percent. Framed: the worst class of the epoch.'),
    'targets': (
        'Targeted attacks', plots.targets,
        'How often PGD-20 towards the class of a column makes the network '
        'predict it, in percent of the images of the class of the row that it '
        'classifies right.'),
    'weights': (
        'Class weights and D', plots.weights,
        'Probability with which the next epoch makes images of a class; the '
        'mean negative margin of the attacked network that it comes from, '
        'larger is more fragile; and, where it is recorded, how often the '
        'teacher predicts the class that an image was made for. Framed: the '
        'extreme class of the epoch.'),
    'losses': (
        'Losses', plots.losses,
        'Means over the steps of an epoch; terms without their weights.'),
    'images': (
        'Synthetic images', plots.images,
        'Images as they joined the pool, by the class that they were made '
        'for.'),
    'pairs': (
        'FAE and UTAE', plots.pairs,
        'Synthetic images, what the attack on the student made of them, and '
        'the difference.'),
}
_OF_RUNS = {
    'learning_curves': (
        'Learning curves', plots.learning_curves,
        'Accuracy of the student while it trains: average over images, and '
        'worst class. The last value stands at the end.'),
    'radii': (
        'Robustness against eps', plots.radii,
        'Accuracy at several radii of the attack.'),
}
_OF_A_COMPARISON = {
    'comparison_fairness': (
        'Average and worst class', comparison_plots.fairness,
        'Means over seeds with intervals of 95% over seeds and test images.'),
    'comparison_curves': (
        'Learning curves', comparison_plots.curves,
        'Means over seeds; bands from the lowest to the highest seed.'),
    'comparison_classes': (
        'Classes', comparison_plots.classes,
        'Accuracy of each class under the strongest attack, in percent, mean '
        'over seeds. Framed: the worst class of the method.'),
}


class Plots:
  """What a report draws: functions of the width, by section, run and name.

  Attributes:
    found: the runs.
  """

  def __init__(self, found: records.Collection, networks: bool = True,
               reporter: reporting.Reporter = reporting.SILENT):
    """Prepares them; nothing is drawn yet.

    Args:
      found: the runs.
      networks: whether teachers may be loaded, for the embedding.
      reporter: told what takes its time.
    """
    self.found, self._networks, self._reporter = found, networks, reporter

  def comparison(self) -> Iterator[tuple[str, str, str, Draw]]:
    """Yields name, title, caption and function of plots of the table."""
    if not self.found.compares:
      return
    for name, (title, draw, caption) in _OF_A_COMPARISON.items():
      yield name, title, caption, functools.partial(draw, self.found.table)

  def together(self) -> Iterator[tuple[str, str, str, Draw]]:
    """Yields the same of all runs over each other."""
    for name, (title, draw, caption) in _OF_RUNS.items():
      yield name, title, caption, functools.partial(draw, self.found.runs)

  def by_run(self) -> Iterator[
      tuple[str, str, str, list[tuple[records.Run, Draw]]]]:
    """Yields the same with a function for each run, side by side."""
    for name, (title, draw, caption) in _OF_A_RUN.items():
      yield name, title, caption, [
          (run, functools.partial(draw, run)) for run in self.found.runs]
    yield ('embedding', 'Where the teacher sees the images',
           'Test images and synthetic images in two principal components of '
           'what the last layer of the teacher reads; the components are those '
           'of the test images. The name of a class is at its median.',
           [(run, functools.partial(self._embedding, run))
            for run in self.found.runs])

  def _embedding(self, run, width):
    return plots.features(self._embedded(str(run.workdir)), run, width)

  @functools.cache  # noqa: B019, they live as long as the report
  def _embedded(self, workdir):
    if not self._networks:
      raise records.Missing(_NO_NETWORKS)
    run = next(run for run in self.found.runs if str(run.workdir) == workdir)
    self._reporter.line(f'{run.title}: features of the teacher')
    return embedding.embed(run)


def write_figures(drawable: Plots, directory: pathlib.Path, *,
                  width: float = drawing.COLUMN,
                  reporter: reporting.Reporter = reporting.SILENT
                  ) -> list[pathlib.Path]:
  """Writes each plot as PDF and PNG; returns the files.

  Args:
    drawable: the plots.
    directory: made if absent.
    width: of a plot in inches.
    reporter: told of plots that cannot be drawn, and why.
  """
  directory.mkdir(parents=True, exist_ok=True)
  written, found = [], drawable.found
  todo = [(name, draw) for name, _, _, draw in drawable.comparison()]
  if found.runs:
    todo += [(name, draw) for name, _, _, draw in drawable.together()]
  for name, _, _, of_runs in drawable.by_run():
    for run, draw in of_runs:
      title = re.sub(r'[^\w.-]+', '_', run.title)
      todo.append((name if len(found.runs) == 1 else f'{title}_{name}', draw))
  for name, draw in todo:
    try:
      drawn = _drawn(draw, width)
    except records.Missing as missing:
      reporter.line(f'{name}: {missing}')
      continue
    for suffix in ('.pdf', '.png'):
      path = directory / f'{name}{suffix}'
      drawing.save(drawn, path)
      written.append(path)
  return written


def text(drawable: Plots) -> str:
  """Returns the report of some runs: tables, and their plots."""
  found = drawable.found
  sections = list(_sections(found, drawable))
  title = _title(found)
  contents = ''.join(f'<a href="#{name}">{_escape(heading)}</a>'
                     for name, heading, _ in sections)
  body = ''.join(
      f'<section id="{name}"{_kind(content)}><h2>{_escape(heading)}</h2>'
      f'{content}</section>' for name, heading, content in sections)
  made = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header><h1>{_escape(title)}</h1>{_lead(found)}<nav>{contents}</nav></header>
<main{' class="one"' if len(found.runs) == 1 else ''}>{body}</main>
<footer>ferd_jax {ferd_jax.__version__}, {made}</footer>
</body>
</html>
"""


def _kind(content):
  """Returns the class of a section, which says how it is laid out."""
  return ' class="plot"' if content.count('<figure>') == 1 else ''


def _title(found):
  if found.runs and not found.is_comparison:
    names = [str(run.identity.get('name', run.title)) for run in found.runs]
    return ' and '.join(dict.fromkeys(names)) if len(names) < 4 else (
        f'{len(names)} runs')
  return 'Comparison'


def _lead(found):
  """Returns a paragraph for each run: what it is, in a sentence."""
  lines = []
  for run in found.runs:
    identity = run.identity
    teacher, student = (identity.get(name, {}).get('arch', '?')
                        for name in ('teacher', 'student'))
    parts = ', '.join(str(identity[group]['name']) for group in (
        'synthesis', 'sampler', 'inner', 'outer')
                      if isinstance(identity.get(group), dict)
                      and 'name' in identity[group])
    state = ('' if run.results is not None else
             f' <strong>It has not ended: {len(run.metrics)} of '
             f'{identity.get("num_epochs", "?")} epochs are done.</strong>')
    lines.append(
        f'<p><strong>{_escape(run.title)}</strong>: '
        f'{_escape(teacher)} &rarr; {_escape(student)}, '
        f'{_escape(identity.get("data", {}).get("name", "?"))}, L-infinity eps '
        f'{identity.get("eps", float("nan")):.4g}, seed '
        f'{identity.get("seed", "?")}. Parts: {_escape(parts)}.{state}</p>')
  return ''.join(lines)


def _sections(found, drawable) -> Iterator[tuple[str, str, str]]:
  """Yields name, heading and content of what there is."""
  runs = found.runs
  notes = ''.join(f'<p class="missing">{_escape(note)}</p>'
                  for note in found.notes)
  if found.is_comparison or found.compares:
    yield from _comparison(found, drawable, notes)
  if not runs:
    return
  yield 'results', 'Results', _beside(
      runs, [_or_missing(_results, run) for run in runs])
  everything = {name: (title, caption, [draw for _, draw in of_runs])
                for name, title, caption, of_runs in drawable.by_run()}
  together = {name: (title, caption, draw)
              for name, title, caption, draw in drawable.together()}

  def side_by_side(name):
    title, caption, draws = everything.pop(name)
    return name, title, _caption(caption) + _beside(
        runs, [_figure(draw, f'{title}, {run.title}') for run, draw in zip(
            runs, draws, strict=True)])

  def over_each_other(name):
    title, caption, draw = together.pop(name)
    return name, title, _caption(caption) + _figure(draw, title)

  yield side_by_side('classes')
  yield over_each_other('learning_curves')
  yield side_by_side('classes_over_epochs')
  yield over_each_other('radii')
  yield from (side_by_side(name) for name in list(everything))
  if any(_diagnosed(run) for run in runs):
    yield 'diagnosis', 'Can the numbers be believed?', _beside(
        runs, [_or_missing(_diagnosis, run) for run in runs])
  yield 'cost', 'Cost', _beside(runs, [_or_missing(
      lambda run: _rows(run_tables.cost(run)), run) for run in runs])
  yield 'made', 'How it was made', _beside(runs, [_or_missing(
      lambda run: _rows(run_tables.made_by(run)), run) for run in runs])
  yield 'settings', 'Settings', _beside(
      runs, [_or_missing(_settings, run) for run in runs])


def _comparison(found, drawable, notes):
  """Yields the sections of the table of all that ended."""
  if found.table is None:
    yield 'table', 'Comparison', notes or _missing(
        'not yet: no run has ended')
    return
  full = markdown.text(found.table, footnotes=())
  yield 'table', 'Comparison', _from_markdown(full) + notes
  for name, title, caption, draw in drawable.comparison():
    yield name, title, _caption(caption) + _figure(draw, title)
  if not found.is_comparison:  # Each run has its own below.
    return
  yield 'table_classes', 'Every class', _caption(
      'Percent, mean ± standard deviation over seeds; bold: the worst '
      'class.') + _from_markdown(class_tables.markdown_text(found.table))


def _results(run):
  """Returns the tables of a run, teacher beside student."""
  parts = []
  for title, results in (('', run.ended), ('Evaluated again', run.evaluation)):
    if results is None:
      continue
    about = [results.get('dataset'), results.get('split'),
             f'{results["num_examples"]} images',
             f'{results.get("norm", "Linf")} eps {results["eps"]:.5g}',
             f'epoch {results["epoch"]}' if results.get('epoch') else '',
             f'seed {results.get("seed")}']
    if title:
      parts.append(f'<h3>{title}</h3>')
    if results.get('training_data'):
      parts.append('<p><strong>' + _escape(tables.not_data_free(
          results['training_data'])) + '</strong></p>')
    parts.append(_caption(', '.join(str(each) for each in about if each)
                          + '. NSD: standard deviation over classes divided '
                          'by their mean; lower is fairer. Success rate: the '
                          'share of the images that are right as they are '
                          'which the attack fools.'))
    header, rows = run_tables.summary(results)
    parts.append(_table(header, rows))
    number = len(results.get('class_counts') or next(iter(next(iter(
        results['models'].values())).values()))['per_class'])
    parts.append('<details><summary>Every class (%)</summary>' + _table(
        *run_tables.by_class(results, run.names(number))) + '</details>')
    for model, attacks in results['models'].items():
      for attack, values in attacks.items():
        parts += [f'<p class="missing">Warning: {_escape(model)}, '
                  f'{_escape(attack)}: {_escape(warning)}</p>'
                  for warning in values.get('warnings', ())]
  return ''.join(parts)


def _diagnosed(run):
  """Returns what was found of masked gradients, by model."""
  found = {}
  for results in (run.results, run.evaluation, *run.sweep):
    found |= (results or {}).get('diagnosis', {})
  return found


def _diagnosis(run):
  """Returns the checks of each model that was diagnosed."""
  found = _diagnosed(run)
  if not found:
    raise records.Missing('not asked: python -m ferd_jax.evaluate RUN '
                          '--diagnose --json=RUN/sweep.json does')
  return ''.join(
      f'<h3>{_escape(model)}</h3>' + _from_markdown(
          diagnosis.Diagnosis.from_json(values).table())
      for model, values in found.items())


def _settings(run):
  differ, same = run_tables.settings(run)
  return (_caption('What is not the default, and the default.')
          + _rows(differ, ['setting', 'value', 'default'])
          + '<details><summary>All others</summary>' + _rows(same)
          + '</details>')


def _or_missing(function, run):
  try:
    return _drawn(function, run)
  except records.Missing as missing:
    return _missing(str(missing))


def _figure(draw, title):
  """Returns a picture, or why there is none."""
  try:
    drawn = _drawn(draw, drawing.PAGE)
  except records.Missing as missing:
    return _missing(str(missing))
  data = base64.b64encode(drawing.svg(drawn)).decode()
  width, height = drawn.get_size_inches()
  return (f'<figure><img alt="{_escape(title)}" width="{96 * width:.0f}" '
          f'height="{96 * height:.0f}" src="data:image/svg+xml;base64,{data}">'
          '</figure>')


def _drawn(draw, argument):
  """Returns what a function draws of a record, which any version may have left.

  Raises:
    records.Missing: also if the record is of another form than is known.
  """
  try:
    return draw(argument)
  except (LookupError, TypeError, ValueError) as error:
    raise records.Missing(
        'not to be drawn: what is recorded is of another form '
        f'({type(error).__name__}: {error})') from error


def _missing(reason):
  return f'<p class="missing">Not here: {_escape(reason)}.</p>'


def _caption(words):
  return f'<p class="caption">{_escape(words)}</p>'


def _beside(runs: Sequence[records.Run], contents: Sequence[str]) -> str:
  """Returns what there is of each run, side by side where there is space."""
  if len(runs) == 1:
    return contents[0]
  parts = ''.join(f'<div><h3>{_escape(run.title)}</h3>{content}</div>'
                  for run, content in zip(runs, contents, strict=True))
  return f'<div class="beside">{parts}</div>'


def _rows(rows, header=()):
  """Returns a table of names and what they are, as long as it may be."""
  head = ''.join(f'<th>{_escape(cell)}</th>' for cell in header)
  return ('<table class="pairs">' + (f'<tr>{head}</tr>' if head else '')
          + ''.join(f'<tr><th>{_escape(name)}</th>' + ''.join(
              f'<td>{_escape(value)}</td>' for value in values) + '</tr>'
                    for name, *values in rows) + '</table>')


def _table(header, rows):
  """Returns a table that can be scrolled where it is too wide."""
  head = ''.join(f'<th>{_inline(cell)}</th>' for cell in header)
  body = ''.join('<tr>' + ''.join(f'<td>{_inline(cell)}</td>' for cell in row)
                 + '</tr>' for row in rows)
  return (f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
          f'<tbody>{body}</tbody></table></div>')


def _from_markdown(words):
  """Returns headings, paragraphs and tables of our own Markdown as HTML."""
  parts, rows = [], []
  for line in [*words.splitlines(), '']:
    if line.startswith('|'):
      rows.append([cell.strip() for cell in line.strip('|').split('|')])
      continue
    if rows:
      parts.append(_table(rows[0], rows[2:]))
      rows = []
    if line.startswith('#'):
      level = len(line) - len(line.lstrip('#'))
      if level > 1:
        parts.append(f'<h3>{_inline(line.lstrip("# "))}</h3>')
    elif line.strip():
      parts.append(f'<p class="caption">{_inline(line)}</p>')
  return ''.join(parts)


def _inline(words):
  """Returns a text with its bold parts as HTML."""
  return re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', _escape(words))


def _escape(value):
  return html.escape(str(value))


_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto;
  max-width: 84rem; padding: 0 1rem 2rem; background: #fff; }
h1 { font-size: 1.6rem; margin: 1.2rem 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .3rem; border-top: 1px solid #ccc;
  padding-top: .8rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; overflow-wrap: anywhere; }
header p { margin: .2rem 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0;
  font-size: .9rem; }
a { color: #0a58a5; }
figure { margin: .4rem 0; }
img { max-width: 100%; height: auto; }
.caption { color: #444; font-size: .9rem; margin: .2rem 0 .5rem;
  max-width: 60rem; }
.missing { background: #f3f3f3; border-left: 3px solid #888; margin: .4rem 0;
  padding: .4rem .7rem; overflow-wrap: anywhere; max-width: 60rem; }
.beside { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); }
.beside > div { min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .3rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; text-align: right; border-bottom: 1px solid
  #ddd; white-space: nowrap; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom;
  white-space: normal; }
th:first-child, td:first-child { text-align: left; }
.pairs th, .pairs td { text-align: left; white-space: normal;
  overflow-wrap: anywhere; vertical-align: top; }
.pairs th { font-weight: 600; min-width: 8rem; }
.one { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); }
.one > section { min-width: 0; }
.one > #results { grid-column: 1 / -1; }
summary { cursor: pointer; color: #0a58a5; margin: .3rem 0; }
footer { border-top: 1px solid #ccc; color: #666; font-size: .85rem;
  margin-top: 2rem; padding-top: .5rem; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; }
  img { max-width: none; }
}
@page { margin: 14mm; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  nav { display: none; }
  .one { display: block; }
  h2 { margin-top: 1rem; }
  h2, h3, .caption { break-after: avoid; }
  figure, p, tr, .plot { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
  summary { list-style: none; }
  figure img { max-height: 245mm; }
  .wide { overflow: visible; }
  table { font-size: 7pt; }
  th, td { padding: .1rem .25rem; white-space: normal; }
  .beside { grid-template-columns: 1fr 1fr; gap: 0 .5rem; }
}
"""
