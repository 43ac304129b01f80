"""A config from the command line: its file, and settings in place of its own.

  --config=configs/cifar10.py:released,smoke   or   --config=cifar10
  --config.eps=8/255 --config.sampler.name=uniform --config.teacher.width=

ml_collections parses the settings; here is what a person expects of it besides.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import difflib
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import textwrap
import traceback
from typing import Any
from typing import NamedTuple

from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags

from ferd_jax.core import errors
from ferd_jax.run import config_files
from ferd_jax.run import settings

_FLAG = re.compile(r'--?config(?:=(?P<value>.*))?$', re.DOTALL)
_SETTING = re.compile(
    r'--?(?P<no>no)?config\.(?P<name>[\w.]+)(?:=(?P<value>.*))?$', re.DOTALL)
_FRACTION = re.compile(r'\s*([-+.\deE]+)\s*/\s*([-+.\deE]+)\s*$')
# What people call settings elsewhere.
_ELSEWHERE = {'lr': 'learning_rate', 'wd': 'weight_decay', 'bs': 'batch_size',
              'epochs': 'num_epochs', 'epsilon': 'eps', 'alpha': 'step_size'}
_HELP = ('-h', '--help', '-help', '--helpfull', '-helpfull', '-?')


class Parsed(NamedTuple):
  """What a command line says.

  Attributes:
    config: with its settings in force, locked; None without one if help was
      asked for.
    positional: arguments that are no flags, the program first.
    wants_help: whether help was asked for.
  """
  config: config_dict.ConfigDict | None
  positional: list[str]
  wants_help: bool


def parse(argv: Sequence[str], root: pathlib.Path,
          flag_values: flags.FlagValues = flags.FLAGS) -> Parsed:
  """Parses all flags, those of the config among them.

  Args:
    argv: the command line, the program first.
    root: where `configs/` is.
    flag_values: the other flags, which are set.

  Raises:
    ValueError: with one line that names the mistake.
  """
  place, rest = _config_argument(argv)
  if place is None:
    if any(arg in _HELP for arg in argv):
      return Parsed(None, list(argv), True)
    raise ValueError('Expected --config=NAME, one of '
                     f'{", ".join(_names(root))}, or a file.')
  config = load(place, root)
  given = list(_given(rest, config))
  settings.give_way(config, {
      name: '' if _unsets(value, name, config) else value
      for name, value, _ in given if value is not None})
  rest = _in_force(rest, given, config)
  wants_help = any(arg in _HELP for arg in rest)
  rest = [arg for arg in rest if arg not in _HELP]
  try:
    holder = config_flags.DEFINE_config_dict(
        'config', config, lock_config=True, sys_argv=rest,
        flag_values=flag_values)
    positional = flag_values(rest)
  except Exception as error:  # Of whatever a person may type.
    raise ValueError(errors.reason(error)) from error
  return Parsed(holder.value, positional, wants_help)


def load(place: str, root: pathlib.Path) -> config_dict.ConfigDict:
  """Returns the config of a file.

  Args:
    place: a file, with variants after a colon; or a name of `configs/`.
    root: where `configs/` is.

  Raises:
    ValueError: if there is none, or it fails; the message has its file and
      line.
  """
  path, _, variants = place.partition(':')
  candidates = [pathlib.Path(path), pathlib.Path(f'{path}.py'),
                root / 'configs' / path, root / 'configs' / f'{path}.py']
  file = next((each for each in candidates if each.is_file()), None)
  if file is None:
    name = path.removeprefix('configs/').removesuffix('.py')
    close = difflib.get_close_matches(name, _names(root))
    close += [other for other in _names(root) if other.endswith(f'/{name}')]
    hint = f' Did you mean {" or ".join(close)}?' if close else ''
    raise ValueError(f'Expected --config={path} to be a file or one of '
                     f'{", ".join(_names(root))}.{hint}')
  return call(file, 'get_config', config_dict.ConfigDict,
              *([variants] if variants else []))


def call(file: pathlib.Path, function: str, kind: type, *args: Any) -> Any:
  """Returns what a function of a Python file returns.

  Args:
    file: a config, or another file of settings.
    function: its name.
    kind: of what it returns.
    *args: of the function.

  Raises:
    ValueError: if it fails or returns something else; the message has the file
      and line.
  """
  folder = str(file.resolve().parent)
  if folder not in sys.path:  # Its own modules, such as parts of a method.
    sys.path.append(folder)
  config_files.make_importable()
  try:
    spec = importlib.util.spec_from_loader(
        f'_config_{file.stem}', importlib.machinery.SourceFileLoader(
            f'_config_{file.stem}', str(file)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function)(*args)
  except Exception as error:  # A config is code: anything can happen.
    raise ValueError(_where(error, file)) from error
  if not isinstance(found, kind):
    raise ValueError(f'{file}: Expected {function} to return a '
                     f'{kind.__name__}, got {type(found).__name__}.')
  return found


def help_text(config: config_dict.ConfigDict) -> str:
  """Returns every setting with its value and meaning, by group."""
  values, lines, group = dict(settings.flat(config)), [], None
  for name, meaning in settings.meanings(config).items():
    head = name.rpartition('.')[0]
    if head != group:
      lines += ['']
    group, value = head, values[name]
    shown = '' if value is None else repr(value)
    lines += [f'  --config.{name}={shown}', *textwrap.wrap(
        meaning, 78, initial_indent='      ', subsequent_indent='      ')]
  return '\n'.join(lines)


def names_text(root: pathlib.Path) -> str:
  """Returns the names of the configs that there are, on lines."""
  return textwrap.fill(', '.join(_names(root)), 78, initial_indent='  ',
                       subsequent_indent='  ')


def _names(root):
  """Returns the names of the configs that there are."""
  configs = root / 'configs'
  return sorted(
      path.relative_to(configs).with_suffix('').as_posix()
      for path in configs.rglob('*.py')
      if path.stem not in ('__init__', 'common', 'default', 'variants')
      and path.parent.name != 'comparisons')  # Plans of ferd_jax.compare.


def _where(error, file):
  """Returns an error with the line of the config that it is from."""
  reason = errors.reason(error)
  if isinstance(error, SyntaxError) and error.filename:
    return f'{error.filename}, line {error.lineno}: {error.msg}'
  frames = traceback.extract_tb(error.__traceback__)
  inside = [frame for frame in frames
            if pathlib.Path(frame.filename).resolve() == file.resolve()]
  line = f', line {inside[-1].lineno}' if inside else ''
  kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
  return f'{file}{line}: {kind}{reason}'


def _config_argument(argv):
  """Returns the value of --config, None without one, and all else."""
  rest, place, tokens = [], None, iter(argv)
  for arg in tokens:
    match = _FLAG.match(arg)
    if match is None:
      rest.append(arg)
    elif match['value'] is not None:
      place = match['value']
    else:
      place = next(tokens, '')
  return place or None, rest


def _given(argv: Sequence[str], config: config_dict.ConfigDict
           ) -> Iterator[tuple[str, str | None, int]]:
  """Yields name, value and position of the settings on the command line.

  The value is None for one that is only named, as truth values are.
  """
  for i, arg in enumerate(argv):
    match = _SETTING.match(arg)
    if match is None:
      continue
    value = match['value']
    if value is None and not match['no'] and i + 1 < len(argv) and (
        not argv[i + 1].startswith('-')
        and _type(config, match['name']) is not bool):
      value = argv[i + 1]
    yield match['name'], value, i


def _in_force(argv, given, config):
  """Returns the arguments as ml_collections takes them.

  Settings that are unset by '' or None are set here, as it has no word for
  them.
  """
  argv = list(argv)
  for name, value, i in given:
    _check_name(name, config)
    joined = argv[i].partition('=')[1]
    if value is None:
      continue
    if _unsets(value, name, config):
      group, leaf = _group(config, name)
      group[leaf] = None
      argv[i:i + (1 if joined else 2)] = [None] * (1 if joined else 2)
      continue
    if _type(config, name) is float:
      value = _number(name, value)
    elif _type(config, name) is tuple and not value.startswith(('(', '[')):
      value = _tuple(name, value)
    argv[i] = f'--config.{name}={value}'
    if not joined:
      argv[i + 1] = None
  return [arg for arg in argv if arg is not None]


def _unsets(text, name, config):
  """Returns whether a text leaves a setting without a value."""
  return text in ('', 'None') and settings.may_be_unset(name, config)


def _number(name, text):
  """Returns a fraction as a number's text, any other text as it is."""
  fraction = _FRACTION.match(text)
  if fraction is None:
    return text
  try:
    return repr(float(fraction[1]) / float(fraction[2]))
  except (ValueError, ZeroDivisionError) as error:
    raise ValueError(f'Expected --config.{name}={text} to be a number or a '
                     'fraction, such as 8/255.') from error


def _tuple(name, text):
  """Returns items with commas between them, as Python writes a tuple."""
  items = []
  for item in filter(None, (item.strip() for item in text.split(','))):
    item = _number(name, item)
    try:
      float(item)
    except ValueError:
      item = repr(item)
    items.append(item)
  return f'({", ".join(items)},)' if items else '()'


def _group(config, name):
  """Returns the group of a setting, and its name in it."""
  *groups, leaf = name.split('.')
  for group in groups:
    config = config[group]
  return config, leaf


def _type(config, name):
  """Returns the type of a setting, None if there is none of that name."""
  try:
    group, leaf = _group(config, name)
    return group.get_type(leaf)
  except (AttributeError, KeyError, TypeError):
    return None


def _check_name(name, config):
  """Raises ValueError unless there is a setting of that name."""
  known = dict(settings.flat(config))
  if name in known:
    return
  for group, registry in settings.REGISTRIES.items():
    if name.startswith(f'{group}.'):
      others = [part for part in registry
                if name.removeprefix(f'{group}.') in dict(
                    settings.flat(registry.defaults(part)))]
      if others:
        raise ValueError(
            f'--config.{name} is a setting of {group}.name='
            f'{" or ".join(map(repr, others))}, not of '
            f'{config[group].name!r}.')
  group, _, leaf = name.rpartition('.')
  leaf = _ELSEWHERE.get(leaf, leaf)
  close = [other for other in known if other == f'{group}.{leaf}'.lstrip('.')]
  close += [other for other in known if other.rpartition('.')[2] == leaf]
  close += difflib.get_close_matches(name, known, n=3, cutoff=0.7)
  close += [other for other in known if difflib.get_close_matches(
      leaf, [other.rpartition('.')[2]], cutoff=0.8)]
  close = list(dict.fromkeys(close))[:3]
  hint = (f' Did you mean {" or ".join(close)}?' if close else
          ' --help shows all.')
  raise ValueError(f'There is no setting --config.{name}.{hint}')
