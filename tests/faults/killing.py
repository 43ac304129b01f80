"""Sends signals to this process while it is in a part of a run."""

import os
import signal
import threading
import time

# Of a run: a function of a module, and for how long from its first call, or
# until it is done.
_PARTS = {
    'train': ('ferd_jax.train', 'epoch', 2.5),
    'save': ('ferd_jax.run.checkpoints', 'Checkpoints.save', 0.15),
    'evaluate': ('ferd_jax.evaluation.results', 'evaluate', 1.),
    'export': ('ferd_jax.run.export', 'write', 0.05)}
PARTS = tuple(_PARTS)


def before(part: str, moment: float, number: int, times: int) -> None:
  """Arms the process.

  Args:
    part: of the run, of `PARTS`.
    moment: in [0, 1], how far into the part.
    number: of the signal.
    times: how often it is sent, 10 milliseconds apart.
  """
  module, path, seconds = _PARTS[part]
  holder = __import__(module, fromlist=['_'])
  *groups, name = path.split('.')
  for group in groups:
    holder = getattr(holder, group)
  function, armed, done = getattr(holder, name), [], threading.Event()

  def send():
    done.wait(moment * seconds)
    for _ in range(times):
      os.kill(os.getpid(), number)
      time.sleep(0.01)

  def with_signals(*args, **kwargs):
    if not armed:
      armed.append(threading.Thread(target=send, daemon=True))
      armed[0].start()
    try:
      return function(*args, **kwargs)
    finally:
      done.set()
      armed[0].join()
  signal.Signals(number)  # There is such a one.
  setattr(holder, name, with_signals)
