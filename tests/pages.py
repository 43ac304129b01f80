"""What README, docs and CONTRIBUTING.md show: pages, blocks and commands."""

import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# A command line within a sentence; a program alone is its name.
_INLINE = re.compile(
    r'(?:python (?!-m )\S+|python -m \S+|ferd-jax|pip|mkdocs) \S')


class Block(NamedTuple):
  """A fenced block.

  Attributes:
    page: name of its page.
    language: '' for command lines.
    text: of it.
  """
  page: str
  language: str
  text: str


def blocks() -> list[Block]:
  """Returns the blocks of all pages, in order."""
  return [Block(page.name, *found) for page in _all_pages()
          for found in re.findall(r'^ *```(\w*)\n(.*?)^ *```',
                                  page.read_text(), re.MULTILINE | re.DOTALL)]


def commands() -> list[str]:
  """Returns the command lines of all pages, each once, without comments.

  They are those of blocks without a language, and those within sentences. A
  script, which begins with #!, is one.
  """
  found = []
  for block in blocks():
    if block.text.startswith('#!'):
      found.append(f'{block.page}: {block.text.splitlines()[0]}')
    elif not block.language:
      found += _lines(block.text)
  for page in _all_pages():
    text = re.sub(r'^ *```.*?^ *```', '', page.read_text(),
                  flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r'`([^`]+)`', text):
      if _INLINE.match(' '.join(span.split())):
        found += _lines(span)
  return list(dict.fromkeys(found))


def _all_pages():
  return [*PAGES, ROOT / 'CONTRIBUTING.md']


def _lines(text):
  """Returns command lines; one goes on where it ends within quotes."""
  found, begun = [], ''
  for line in re.sub(r' *\\\n\s*', ' ', text.strip()).splitlines():
    begun = f'{begun}\n{line}' if begun else line
    try:
      words = shlex.split(begun, comments=True)
    except ValueError:
      continue
    if words:
      # Without its comment.
      found.append(re.sub(r'\s+#.*$', '', begun) if '\n' not in begun else
                   ' '.join(begun.split()))
    begun = ''
  if begun:
    raise ValueError(f'Expected quotes to be closed: {begun}')
  return found
