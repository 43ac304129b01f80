"""Robust teachers by their RobustBench id: what they are and where they are.

assets/robustbench.csv holds norm, architecture, normalisation, published
accuracies and address of each network of RobustBench against L-infinity and L2
perturbations whose architecture is supported, from RobustBench/robustbench
1.1.1 (commit 78fcc9e), model_zoo/cifar10.py and cifar100.py; the accuracies are
in its model_info.

Ids repeat across norms. `Rice2020Overfitting` is the one against L-infinity,
which the runs here are about; `L2/Rice2020Overfitting` that against L2.
"""

from collections.abc import Mapping
import csv
import dataclasses
import difflib
import functools
from html import parser as html_parser
from importlib import resources
import pathlib
import re
from typing import Any
from urllib import parse

from ferd_jax import torch_io
from ferd_jax.core import caches
from ferd_jax.core import downloads
from ferd_jax.core import errors
from ferd_jax.core import reporting
from ferd_jax.core import validate

_LIST = 'python -m ferd_jax.teachers list'
_PAGE_BYTES = 1 << 20
NORMS = ('Linf', 'L2')  # Of a bare id the first.
# Options that say how to attack, not what a network is.
_FREE = ('straight_through',)


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network of RobustBench.

  Attributes:
    dataset: 'cifar10' or 'cifar100'.
    norm: that it was trained and attacked in, one of `NORMS`.
    id: RobustBench's, which another norm may have, too.
    arch: a name for `models.build`.
    options: of `models.build`, all that keys do not reveal; no `mean` and `std`
      where there is no normalisation.
    select: the key of the state dict in its file, or None.
    clean: published accuracy on the 10,000 test images, a fraction.
    autoattack: published accuracy under AutoAttack at `eps`, a fraction.
    adaptive: the lower accuracy that RobustBench has of an attack made for the
      network, a fraction; None where AutoAttack is what it has.
    eps: radius in [0, 1] pixels, as text: '8/255', '0.031' or '0.5'.
    address: where its file is.
  """
  dataset: str
  norm: str
  id: str
  arch: str
  options: Mapping[str, Any]
  select: str | None
  clean: float
  autoattack: float
  adaptive: float | None
  eps: str
  address: str

  @property
  def name(self) -> str:
    """The id, with its norm where a bare one is another's: 'L2/Standard'."""
    return self.id if self.norm == NORMS[0] else f'{self.norm}/{self.id}'

  @property
  def remark(self) -> str:
    """What has to be known of the published accuracy, or ''."""
    if self.adaptive is None:
      return ''
    return (f'AutoAttack overrates {self.name}: it leaves '
            f'{self.autoattack:.2%}, with gradients through its plateaus '
            f'{self.adaptive:.2%} are left (straight_through, '
            'docs/teachers.md).')

  def options_with(self, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options, if none that is given contradicts them.

    `straight_through` is no such thing: it says how to attack.

    Raises:
      ValueError: if one does.
    """
    free = {name: value for name, value in given.items() if name in _FREE}
    for name, value in given.items():
      if name in free:
        continue
      value = tuple(value) if isinstance(value, list) else value
      if self.options.get(name) != value:
        raise validate.SettingError(
            name, value, f'not to be set beside robustbench={self.name!r}, '
            f'which has {self.options.get(name)!r}.')
    return {**self.options, **free}


@functools.cache
def entries() -> tuple[Teacher, ...]:
  """Returns all networks of the table."""
  table = resources.files('ferd_jax.assets').joinpath('robustbench.csv')
  with table.open() as file:
    return tuple(map(_entry, csv.DictReader(file)))


def _entry(row):
  options = {name: row[name] for name in ('activation', 'padding',
                                          'shortcut_input') if row[name]}
  options |= {name: row[name] == 'true'
              for name in ('final_bn', 'standardise') if row[name]}
  options |= {name: tuple(map(float, row[name].split()))
              for name in ('mean', 'std') if row[name]}
  adaptive = float(row['adaptive']) / 100 if row['adaptive'] else None
  return Teacher(row['dataset'], row['norm'], row['id'], row['arch'], options,
                 row['select'] or None, float(row['clean']) / 100,
                 float(row['autoattack']) / 100, adaptive, row['eps'],
                 row['address'])


def find(dataset: str, name: str, norm: str | None = None) -> Teacher:
  """Returns the network of a data set with that id.

  Args:
    dataset: 'cifar10' or 'cifar100'.
    name: an id, or one with its norm, 'L2/Rice2020Overfitting'.
    norm: one of `NORMS`; None for what the name says, 'Linf' if nothing.

  Raises:
    ValueError: if there is none; the message names the closest, or the norm in
      which there is one. Also for two norms that differ.
  """
  head, slash, rest = name.partition('/')
  if slash:
    validate.one_of(NORMS, **{'norm of robustbench': head})
    if norm not in (None, head):
      raise validate.SettingError(
          'robustbench', name, f'to be of norm={norm!r}, or without a norm.')
    name, norm = rest, head
  norm = norm or NORMS[0]
  validate.one_of(NORMS, norm=norm)
  of_dataset = {entry.id: entry for entry in entries()
                if (entry.dataset, entry.norm) == (dataset, norm)}
  if name in of_dataset:
    return of_dataset[name]
  other = [entry for entry in entries() if entry.norm != norm
           and (entry.dataset, entry.id) == (dataset, name)]
  if other:
    raise validate.SettingError(
        'robustbench', name, f'to be a supported id of {dataset} against '
        f'{norm}; there is one against {other[0].norm}, {other[0].norm}/{name}.'
    )
  if not any(entry.dataset == dataset for entry in entries()):
    known = sorted({entry.dataset for entry in entries()})
    raise validate.SettingError(
        'robustbench', name, f'with the data set {" or ".join(known)}, not '
        f'{dataset!r}.')
  elsewhere = [entry.dataset for entry in entries()
               if (entry.id, entry.norm) == (name, norm)]
  by_lower = {known.lower(): known for known in of_dataset}
  close = [known for lower, known in by_lower.items()
           if lower.startswith(name.lower())][:3] or [
               by_lower[match] for match in difflib.get_close_matches(
                   name.lower(), by_lower, n=3)]
  hint = (f'there is one of {elsewhere[0]}; ' if elsewhere else
          f'did you mean {" or ".join(close)}? ' if close else '')
  raise validate.SettingError(
      'robustbench', name, f'to be a supported id of {dataset}'
      + (f' against {norm}' if norm != NORMS[0] else '')
      + f'; {hint}{_LIST} shows all.')


def in_both_norms(dataset: str, name: str) -> bool:
  """Returns whether a bare id is one of several networks of a data set."""
  return len({entry.norm for entry in entries()
              if (entry.dataset, entry.id) == (dataset, name)}) > 1


def cached_path(teacher: Teacher) -> pathlib.Path:
  """Returns where the file of a network is kept, see `caches.place`.

  Files of norms other than the first have a directory of their own.
  """
  return (caches.place() / 'teachers' / teacher.dataset
          / f'{teacher.name}.pt')


def fetch(teacher: Teacher,
          reporter: reporting.Reporter = reporting.TERMINAL) -> pathlib.Path:
  """Returns the file of a network, downloaded if it is not there unharmed.

  Args:
    teacher: the network.
    reporter: shows the download.

  Raises:
    OSError: if it could not be downloaded; the message says which file to put
      where.
  """
  path = cached_path(teacher)
  try:
    downloads.get(_direct(teacher.address), path, opener=_connect,
                  accept=torch_io.check_format, reporter=reporter)
  except (OSError, ValueError) as error:
    state = 'damaged' if path.exists() else 'not there'
    # Its causes are as many layers of the network as there are.
    raise OSError(
        f'The file of {teacher.name} is {state} and could not be downloaded '
        f'({errors.reason(error)}). Get it from {teacher.address} and put it '
        f'at {path}, or name it where it is (of a config: teacher.path); '
        f'{_LIST} shows the others.') from None
  return path


def _direct(address):
  """Returns the address of a file itself, where one leads to a page."""
  drive = re.fullmatch(r'https://drive\.google\.com/uc\?id=([\w-]+)', address)
  if drive is None:
    return address
  return ('https://drive.usercontent.google.com/download?'
          f'id={drive[1]}&export=download&confirm=t')


def _connect(address, headers):
  """Opens an address, through the form that Drive puts before large files."""
  response = downloads.connect(address, headers)
  if not downloads.is_page(response):
    return response
  with response:
    form = _Form()
    form.feed(response.read(_PAGE_BYTES).decode(errors='replace'))
  if not form.fields or form.action is None:
    raise OSError(downloads.PAGE)
  action = parse.urljoin(response.url, form.action)
  return downloads.connect(f'{action}?{parse.urlencode(form.fields)}', headers)


class _Form(html_parser.HTMLParser):
  """Collects the address and the hidden fields of a page's form."""

  def __init__(self):
    super().__init__()
    self.action, self.fields = None, {}

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    if tag == 'form' and self.action is None:
      self.action = values.get('action')
    if tag == 'input' and values.get('type') == 'hidden':
      self.fields[values.get('name', '')] = values.get('value', '')


def table(dataset: str | None = None, norm: str | None = None) -> str:
  """Returns the supported networks as lines of text.

  Args:
    dataset: only those of it.
    norm: only those against it.
  """
  titles = ('data set', 'id', 'architecture', 'clean', 'AutoAttack', 'norm',
            'eps', 'options')
  rows = [titles] + [
      (entry.dataset, entry.name, entry.arch, f'{entry.clean:.2%}',
       f'{entry.autoattack:.2%}', entry.norm, entry.eps, _short(entry))
      for entry in entries()
      if dataset in (None, entry.dataset) and norm in (None, entry.norm)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
  return '\n'.join(
      '  '.join(cell.rjust(width) if i in (3, 4) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
                ).rstrip() for row in rows)


def _short(entry):
  options = entry.options
  words = [options['activation']] if 'activation' in options else []
  if 'shortcut_input' in options:
    words.append(f'shortcut_input {options["shortcut_input"]}')
  if 'mean' in options:
    words.append('normalised')
  if 'standardise' in options:
    words.append('standardise')
  if entry.adaptive is not None:
    words.append(f'AutoAttack overrates it ({entry.adaptive:.2%})')
  return ', '.join(words)
