"""A reporter that notes what it is told, for tests."""

from ferd_jax.core import reporting


class Task(reporting.Task):
  """Notes how it was started, what was counted, and whether it was closed."""

  def __init__(self, *started):
    self.started, self.counts, self.closed = started, [], False

  def advance(self, count=1, shown=None):
    self.counts.append(count)

  def close(self):
    self.closed = True


class Reporter(reporting.Reporter):
  """Notes lines and tasks, and shows none."""

  def __init__(self):
    self.lines, self.tasks = [], []

  def line(self, text):
    self.lines.append(text)

  def task(self, name, total=None, unit='step', initial=0, images=0):
    self.tasks.append(Task(name, total, unit, initial))
    return self.tasks[-1]
