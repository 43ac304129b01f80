"""What runs found, without what clocks say of it: that differs every time."""

import json
import re


def record(values):
  """Returns what an epoch found but for times.

  Args:
    values: a line of metrics.jsonl, JSON values.
  """
  return {name: value for name, value in values.items()
          if name != 'time' and not name.endswith(('seconds', 'ms_per_step'))}


def records(workdir):
  """Returns what the epochs of a work directory found but for times."""
  return [record(json.loads(line)) for line in
          (workdir / 'metrics.jsonl').read_text().splitlines()]


def lines(shown):
  """Returns lines of a log without their time stamps.

  Args:
    shown: text.
  """
  return [re.sub(r'^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ', '', line)
          for line in shown.splitlines()]
