"""The plots of one run, or of several runs over each other.

Each returns a figure of the width that it is given, in inches, or raises
`records.Missing` with what a reader is told in its place.
"""

from collections.abc import Sequence
import math

from matplotlib import figure as figures
import numpy as np

from ferd_jax.comparison import markdown
from ferd_jax.reports import drawing
from ferd_jax.reports import embedding
from ferd_jax.reports import records

_FEW = 20  # classes that have bars, and names beside them
_AMPLIFIED = 4  # how much perturbations are
_MOST_PAIRS = 10


@drawing.styled
def class_bars(run: records.Run, width: float) -> figures.Figure:
  """Draws the accuracy of each class under each attack, teacher and student."""
  models = run.ended['models']
  attacks = list(dict.fromkeys(
      attack for found in models.values() for attack in found))
  number = len(next(iter(next(iter(models.values())).values()))['per_class'])
  names, few = run.names(number), number <= _FEW
  figure = drawing.figure(width, 0.3 + (1.05 if few else 1.2) * len(attacks))
  panels = figure.subplots(len(attacks), 1, squeeze=False, sharey=True)[:, 0]
  for axes, attack in zip(panels, attacks, strict=True):
    draw = _bars if few else _sorted_classes
    draw(axes, {model: _percent(found[attack]['per_class'])
                for model, found in models.items() if attack in found},
         names, width)
    first = next(found[attack] for found in models.values() if attack in found)
    count = first.get('num_examples', run.ended['num_examples'])
    fewer = ('' if count >= run.ended['num_examples'] else
             f', first {count} images')
    axes.set_title(f'{markdown.attack_title(attack)}{fewer}')
    axes.set_ylim(0, 130 if few else 100)  # Upright numbers of three digits.
    axes.set_yticks(range(0, 101, 25))
    axes.grid(True)
  panels[-1].set_xlabel('class' if few else 'classes, the least robust first')
  figure.supylabel('accuracy (%)', fontsize=7)
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper right', ncols=len(labels))
  return figure


def _percent(values):
  return np.array([math.nan if value is None else 100 * value
                   for value in values], float)


def _bars(axes, by_model, names, width):
  """Draws bars with their numbers; a frame and a mark say which is worst."""
  size = 0.8 / len(by_model)
  space = 72 * width * 0.85 / len(names) * size  # of a bar, in points
  for i, (model, values) in enumerate(by_model.items()):
    places = np.arange(len(names)) + (i - (len(by_model) - 1) / 2) * size
    colour = drawing.COLOURS.get(model, '#999999')
    bars = axes.bar(places, values, size, color=colour)
    # A legend takes a bar's look from the first, which may be the worst.
    axes.fill_between([], [], color=colour, label=model)
    finite = values[np.isfinite(values)]
    # Of equal ones none is the worst.
    worst = (int(np.nanargmin(values)) if len(finite) and np.ptp(finite)
             else None)
    for j, value in enumerate(values):
      if np.isfinite(value):
        upright = space < 11
        axes.text(places[j], value + 1.5, f'{value:.0f}', ha='center',
                  va='bottom', rotation=90 if upright else 0,
                  fontsize=4.5 if space < 7 else 5.5,
                  fontweight='bold' if j == worst else 'normal',
                  color=drawing.WORST if j == worst else 'black')
    if worst is not None:
      bars[worst].set(edgecolor=drawing.WORST, linewidth=1.2, hatch='////')
  axes.set_xticks(range(len(names)), names)
  axes.tick_params(axis='x', length=0)
  if max(map(len, names)) * len(names) * 3.5 > 72 * width * 0.85:
    axes.tick_params(axis='x', rotation=45)
  axes.set_xlim(-0.6, len(names) - 0.4)


def _sorted_classes(axes, by_model, names, width):
  """Draws the classes of each model in the order of its own accuracies."""
  del width
  for i, (model, values) in enumerate(by_model.items()):
    order = [j for j in np.argsort(values) if np.isfinite(values[j])]
    axes.step(range(len(order)), values[order], where='mid', label=model,
              color=drawing.COLOURS.get(model, '#999999'),
              linestyle=('-', '--')[i % 2])
    if order:
      worst = order[0]
      axes.plot([0], [values[worst]], 'v', color=drawing.WORST)
      axes.annotate(
          f'{model}: worst {names[worst]} {values[worst]:.0f}, median '
          f'{np.median(values[order]):.0f}, best {values[order[-1]]:.0f}',
          (0.02, 0.95 - 0.13 * i), xycoords='axes fraction', fontsize=5.5,
          va='top')


@drawing.styled
def class_curves(run: records.Run, width: float) -> figures.Figure:
  """Draws the accuracy of each class over the epochs, for each attack."""
  curves = run.curves()
  if not curves:
    raise records.Missing(
        'not recorded: there is no point of the learning curve yet (eval.every '
        'says how often), or an older version did not keep its classes')
  panels = {}
  for point, attack in curves.items():
    epochs, values = run.series(f'{point}_per_class')
    chosen = drawing.thinned(len(epochs))
    panels[f'{markdown.attack_title(attack)}, {point.partition("_")[0]}'] = (
        [epochs[i] for i in chosen],
        np.array([_percent(values[i]) for i in chosen]).T, np.nanargmin)
  number = len(next(iter(panels.values()))[1])
  return _over_epochs(panels, run.names(number), width, 'accuracy (%)', low=0,
                      high=100)


@drawing.styled
def weights(run: records.Run, width: float) -> figures.Figure:
  """Draws weights, D and what the teacher agrees with, class x epoch."""
  panels = {}
  for title, name, scale, extreme in (
      ('class weights: probabilities (%)', 'sampler/probs', 100, np.nanargmax),
      ('D: mean negative margins (logits)', 'sampler/fragility', 1,
       np.nanargmax),
      ('teacher predicts the class (%)', 'synthesis/kept_agreement_per_class',
       100, np.nanargmin)):
    epochs, values = run.series(name)
    if epochs:
      chosen = drawing.thinned(len(epochs))
      panels[title] = ([epochs[i] for i in chosen], scale * np.array(
          [[math.nan if value is None else value for value in values[i]]
           for i in chosen], float).T, extreme)
  if not any(title.startswith(('class', 'D')) for title in panels):
    raise records.Missing(
        'not recorded: no epoch is done, or the sampler of this method weighs '
        'no classes')
  number = len(next(iter(panels.values()))[1])
  return _over_epochs(panels, run.names(number), width, '', form='{:.1f}')


def _over_epochs(panels, names, width, label, *, low=None, high=None,
                 form='{:.0f}'):
  """Draws heat maps of classes x epochs; the extreme class of each is framed.
  """
  side = len(panels) if width > 5 else 1
  rows = -(-len(panels) // side)
  figure = drawing.figure(width, rows * (0.75 + 0.135 * min(len(names), 40)))
  axes = figure.subplots(rows, side, squeeze=False)
  for i, (title, (epochs, values, extreme)) in enumerate(panels.items()):
    marked = [(int(extreme(column)), j) for j, column in enumerate(values.T)
              if np.isfinite(column).any()]
    drawing.heat_map(axes[i // side, i % side], values, names,
                     list(map(str, epochs)), low=low, high=high, form=form,
                     label=label, marked=marked if len(names) <= _FEW else ())
    axes[i // side, i % side].set(title=title, xlabel='epoch')
  for i in range(len(panels), rows * side):
    axes[i // side, i % side].set_axis_off()
  axes[0, 0].set_ylabel('class')
  return figure


@drawing.styled
def radii(runs: Sequence[records.Run], width: float) -> figures.Figure:
  """Draws robustness against eps: averages, and worst classes below them."""
  lines = {}
  norms = [each.get('norm', 'Linf') for run in runs for each in run.sweep]
  norm = 'Linf' if 'Linf' in norms else next(iter(norms), '')
  for run in runs:
    sweep = [each for each in run.sweep if each.get('norm', 'Linf') == norm]
    for model in ('teacher', 'student'):
      for attack in _attacks_of(sweep, model):
        points = sorted(
            (each['eps'], each['models'][model][attack]['average'],
             each['models'][model][attack]['worst']) for each in sweep
            if attack in each['models'].get(model, {}))
        title = f'{model}, {markdown.attack_title(attack)}'
        lines[f'{run.title}: {title}' if len(runs) > 1 else title] = np.array(
            points)
    for each in sweep:
      for model, curve in each.get('curves', {}).items():
        if curve['norm'] == norm:
          title = f'{model}, {" and ".join(curve["attacks"])}'
          lines[f'{run.title}: {title}' if len(runs) > 1 else title] = np.array(
              [(eps, at['average'], at['worst'])
               for eps, at in zip(curve['eps'], curve['at'], strict=True)])
  if not lines:
    raise records.Missing(
        'not measured: python -m ferd_jax.evaluate RUN --attacks=pgd20 --eps '
        '0.05,0.1,0.15 --json=RUN/sweep.json measures it, for any radii')
  figure = drawing.figure(width, 2.4)
  panels = figure.subplots(1, 2, sharey=True)
  for number, (title, points) in enumerate(lines.items()):
    for axes, column in zip(panels, (1, 2), strict=True):
      axes.plot(points[:, 0], 100 * points[:, column], label=title,
                **drawing.line(number))
      for eps, *values in points:
        value = 100 * values[column - 1]
        others = [100 * other[other[:, 0] == eps, column]
                  for title_, other in lines.items() if title_ != title]
        above = all(value >= each.max(initial=0.) for each in others)
        axes.annotate(f'{value:.0f}', (eps, value), fontsize=5,
                      xytext=(0, 3 if above else -3), ha='center',
                      textcoords='offset points',
                      va='bottom' if above else 'top')
  for axes, title in zip(panels, ('average', 'worst class'), strict=True):
    axes.set(title=title, xlabel=f'{norm} eps (pixels in [0, 1])')
    axes.set_ylim(-6, 106)
    axes.grid(True)
  panels[0].set_ylabel('accuracy (%)')
  figure.legend(*panels[0].get_legend_handles_labels(),
                loc='outside lower center', ncols=2)
  return figure


def _attacks_of(sweep, model):
  return list(dict.fromkeys(
      attack for each in sweep for attack in each['models'].get(model, {})
      if attack != 'clean'))


@drawing.styled
def targets(run: records.Run, width: float) -> figures.Figure:
  """Draws how often attacks towards each class reach it, by class."""
  matrices = run.ended.get('targets')
  if not matrices:
    raise records.Missing('not measured: eval.target_examples is 0, or an '
                          'older version did not keep it')
  side = len(matrices) if width > 5 else 1
  rows = -(-len(matrices) // side)
  number = len(next(iter(matrices.values()))['reached'])
  names = run.names(number)
  figure = drawing.figure(width, rows * (0.8 + 0.15 * min(number, 24)))
  panels = figure.subplots(rows, side, squeeze=False)
  arrays = {model: 100 * np.array(
      [[math.nan if value is None else value for value in row]
       for row in found['reached']], float)
            for model, found in matrices.items()}
  high = max((float(np.nanmax(values)) for values in arrays.values()
              if np.isfinite(values).any()), default=1.)
  for i, (model, values) in enumerate(arrays.items()):
    axes = panels[i // side, i % side]
    drawing.heat_map(axes, values, names, names, low=0, high=high or 1.,
                     label='reached (% of its images)')
    images = matrices[model].get('num_examples')
    axes.set(title=model if images is None else f'{model}, {images} images',
             xlabel='target', ylabel='class')
  return figure


@drawing.styled
def losses(run: records.Run, width: float) -> figures.Figure:
  """Draws losses and agreements over the epochs."""
  names = dict.fromkeys(
      name for epoch in run.metrics for name, value in epoch.items()
      if name.startswith(('synthesis/', 'distill/'))
      and isinstance(value, int | float))
  panels = {}
  for group, title in (('synthesis', 'synthesis: loss and its terms'),
                       ('distill', 'student: loss and its terms')):
    panels[title] = [name for name in names if name.startswith(f'{group}/')
                     and name.partition('/')[2] not in _NO_LOSSES
                     and not name.endswith(('agreement', 'accuracy'))]
  panels['agreement, accuracy (%)'] = [
      name for name in names if name.endswith(('agreement', '_accuracy'))]
  panels = {title: found for title, found in panels.items() if found}
  if not panels:
    raise records.Missing('not recorded: no epoch is done')
  side = len(panels) if width > 5 else 1
  rows = -(-len(panels) // side)
  columns = {title: 1 if title.endswith('(%)') else 2 for title in panels}
  entries = [-(-len(found) // columns[title])
             for title, found in panels.items()]
  heights = []  # in inches, of the panels and of the legends below them
  for row in range(rows):
    most = max(entries[row * side:(row + 1) * side])
    heights += [1.7, 0.12 * (most + 1) + 0.1]
  figure = drawing.figure(width, sum(heights) + 0.35 * rows)
  axes = figure.subplots(2 * rows, side, squeeze=False, height_ratios=heights)
  for i, (title, found) in enumerate(panels.items()):
    panel, below = axes[2 * (i // side):2 * (i // side) + 2, i % side]
    percent = title.endswith('(%)')
    found = sorted(found, key=lambda name: not name.endswith('/loss'))
    for number, name in enumerate(found):
      epochs, values = run.series(name)
      group, _, short = name.partition('/')
      if percent:
        values = [100 * value for value in values]
        short = f'{group}: {short.replace("_agreement", "").replace("_", " ")}'
      panel.plot(epochs, values, label=f'{short} {values[-1]:.3g}',
                 **drawing.line(number) | {'marker': 'o' if len(epochs) == 1
                                           else ''})
    panel.set(title=title, xlabel='epoch')
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(True)
    below.set_axis_off()
    legend = below.legend(
        *panel.get_legend_handles_labels(), fontsize=5.5,
        ncols=columns[title], loc='upper left', alignment='left',
        title='and the last value', title_fontsize=5.5, columnspacing=1.,
        handlelength=1.5)
    legend.set_in_layout(False)  # So that all panels are of one size.
  return figure


# Numbers of a phase that are no losses.
_NO_LOSSES = ('ms_per_step', 'seconds', 'steps', 'images', 'non_robust',
              'noticed_kappa')


@drawing.styled
def learning_curves(runs: Sequence[records.Run],
                    width: float) -> figures.Figure:
  """Draws average and worst class of the students over the epochs."""
  points = dict.fromkeys(point for run in runs for point in run.curves())
  if not points:
    raise records.Missing(
        'not recorded: there is no point of the learning curve yet (eval.every '
        'says how often)')
  side = min(len(points), 3 if width > 5 else 2)
  rows = -(-len(points) // side)
  figure = drawing.figure(width, 2.3 * rows)
  panels = figure.subplots(rows, side, squeeze=False, sharey=True).ravel()
  for axes in panels[len(points):]:
    axes.set_axis_off()
  for axes, point in zip(panels, points, strict=False):
    for number, run in enumerate(runs):
      for measure, name, dash in (('average', point, '-'), (
          'worst class', f'{point}_worst', '--')):
        epochs, values = run.series(name)
        if not epochs:
          continue
        title = f'{run.title}: {measure}' if len(runs) > 1 else measure
        values = [100 * value for value in values]
        axes.plot(epochs, values, label=title,
                  **drawing.line(number) | {'linestyle': dash})
        axes.annotate(f'{values[-1]:.0f}', (epochs[-1], values[-1]), xytext=(
            3, 0), textcoords='offset points', va='center', fontsize=5.5)
    split, _, attack = point.partition('_')
    axes.set(title=f'{markdown.attack_title(attack)}, {split}', xlabel='epoch')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 103)
    axes.grid(True)
  for axes in panels[:len(points):side]:
    axes.set_ylabel('accuracy (%)')
  panels[len(points) - 1].legend(loc='lower right', fontsize=5.5)
  return figure


@drawing.styled
def images(run: records.Run, width: float) -> figures.Figure:
  """Draws a synthetic image of each class in each of some epochs."""
  epochs, read = run.pool_epochs(), run.pool
  if not epochs:
    epochs, read = run.sample_epochs(), run.samples
  if not epochs:
    raise records.Missing('not there: the run has kept no synthetic images')
  epochs = [epochs[i] for i in drawing.thinned(len(epochs), 12)]
  found = {epoch: read(epoch) for epoch in epochs}
  number = min(_FEW, 1 + max(int(labels.max()) for _, labels in found.values()
                             if len(labels)))
  names = run.names(max(number, len(run.class_names)))[:number]
  several = max(1, 12 // len(epochs))  # of each class in each epoch
  side = min(width * 0.86 / (several * len(epochs)), 0.55)
  figure = drawing.figure(width, 0.35 + number * side)
  grid = figure.subplots(number, several * len(epochs), squeeze=False)
  for i, (epoch, (pictures, labels)) in enumerate(found.items()):
    for row in range(number):
      which = np.flatnonzero(labels == row)
      for j in range(several):
        axes = grid[row, i * several + j]
        if j < which.size:
          drawing.picture(axes, pictures[which[j]])
        drawing.bare(axes)
    grid[0, i * several].set_title(f'epoch {epoch}' if not i else str(epoch),
                                   fontsize=6)
  for row in range(number):
    grid[row, 0].set_ylabel(names[row], rotation=0, ha='right', va='center')
  figure.supxlabel('class on the left; a gap: no image of it', fontsize=6)
  return figure


@drawing.styled
def pairs(run: records.Run, width: float) -> figures.Figure:
  """Draws images before and after the attack, and what it changed."""
  epoch, clean, attacked, labels = run.pairs()
  order = sorted(range(len(labels)), key=lambda i: (
      int(np.sum(labels[:i] == labels[i])), int(labels[i])))[:_MOST_PAIRS]
  order = sorted(order, key=lambda i: int(labels[i]))
  names = run.names(max(len(run.class_names), 1 + int(labels.max())))
  side = min(width * 0.86 / len(order), 0.6)
  figure = drawing.figure(width, 0.5 + 3 * side)
  grid = figure.subplots(3, len(order), squeeze=False)
  for column, i in enumerate(order):
    change = attacked[i] - clean[i]
    drawing.picture(grid[0, column], clean[i])
    drawing.picture(grid[1, column], attacked[i])
    drawing.picture(grid[2, column], 0.5 + _AMPLIFIED * change)
    grid[0, column].set_title(names[int(labels[i])][:10], loc='center',
                              fontsize=5.5)
    grid[2, column].set_xlabel(f'{np.abs(change).max():.2g}', fontsize=5.5)
  for row, title in enumerate(('FAE', 'UTAE', f'change x{_AMPLIFIED}')):
    grid[row, 0].set_ylabel(title, rotation=0, ha='right', va='center')
  figure.supxlabel(f'epoch {epoch}; below: largest change of a pixel in [0, 1]',
                   fontsize=6)
  return figure


@drawing.styled
def features(found: embedding.Embedding, run: records.Run,
             width: float) -> figures.Figure:
  """Draws test images and synthetic ones in the teacher's feature space."""
  names = run.names(max(len(run.class_names), found.num_classes))
  figure = drawing.figure(width, 0.5 + 0.5 * width)
  panels = figure.subplots(1, 2, sharex=True, sharey=True)
  few = found.num_classes <= _FEW
  for axes, (points, labels, title) in zip(panels, (
      (found.test, found.test_labels, 'test images'),
      (found.pool, found.pool_labels, 'synthetic images')), strict=True):
    for label in range(found.num_classes) if few else (None,):
      chosen = labels == label if few else np.ones(len(labels), bool)
      style = drawing.line(label or 0)
      axes.plot(*points[chosen].T, linestyle='', markersize=2, alpha=0.55,
                color=style['color'], marker=style['marker'],
                markeredgewidth=0)
      if few and chosen.any():
        axes.annotate(names[label], np.median(points[chosen], axis=0),
                      ha='center', va='center', fontsize=6, fontweight='bold',
                      bbox={'boxstyle': 'round,pad=0.15', 'fc': 'white',
                            'ec': style['color'], 'lw': 0.8, 'alpha': 0.85})
    axes.set_title(f'{len(points)} {title}')
  figure.supxlabel(f'component 1 ({found.explained[0]:.0%} of the variance of '
                   'the test images)', fontsize=7)
  panels[0].set_ylabel(f'component 2 ({found.explained[1]:.0%})')
  return figure
