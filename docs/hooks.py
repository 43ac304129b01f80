"""Hooks of mkdocs: a page of all settings, and links that leave the site.

The reference is what `python main.py --config=NAME --help` shows, from the same
function, so that there is one text for each setting.
"""

import html
import pathlib
import re
import sys

from mkdocs.structure import files

_ROOT = pathlib.Path(__file__).parents[1]
_HEAD = """# All settings

The defaults are the paper's for CIFAR-10; `python main.py --config=NAME --help`
shows the values of a config. First the settings of a run by group, then those
of every part that `synthesis.name`, `sampler.name`, `inner.name` and
`outer.name` can name.

"""


def _table(values, meanings):
  rows = ['| setting | default | meaning |', '|---|---|---|']
  for name, value in values.items():
    shown = '' if value is None else f'`{value!r}`'
    meaning = html.escape(meanings[name], quote=False).replace('|', r'\|')
    rows.append(f'| `{name}` | {shown} | {meaning} |')
  return '\n'.join(rows) + '\n'


def reference() -> str:
  """Returns the page of all settings and all parts, as Markdown."""
  if str(_ROOT) not in sys.path:  # mkdocs takes back what a hook puts there.
    sys.path.insert(0, str(_ROOT))
  from ferd_jax.run import settings
  config = settings.defaults()
  meanings, groups = settings.meanings(config), {}
  for name, value in settings.flat(config):
    group = name.partition('.')[0] if '.' in name else ''
    if name in meanings and group not in settings.REGISTRIES:
      groups.setdefault(group, {})[name] = value
  text = [_HEAD]
  for group, values in groups.items():
    text.append(f'## {group or "run"}\n\n{_table(values, meanings)}')
  for group, registry in settings.REGISTRIES.items():
    for part in registry:
      values = {name: value for name, value in settings.flat(
          registry.defaults(part), f'{group}.') if name != f'{group}.name'}
      of_part = {f'{group}.{name}': meaning
                 for name, meaning in registry.meanings(part).items()}
      text += [f'## {group}: {part}\n',
               _table(values, of_part) if values else 'It has no settings.\n']
  return '\n'.join(text)


def on_files(found, config):
  """Adds the generated page."""
  found.append(files.File.generated(
      config, 'settings_reference.md', content=reference()))
  return found


def on_page_markdown(markdown, page, config, files):
  """Lets links to files outside of docs/ be text in the site."""
  del page, config, files
  return re.sub(r'\[([^\]]+)\]\(\.\./[^)]+\)', r'\1', markdown)
