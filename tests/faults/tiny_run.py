"""Config of a run of seconds through main.py.

  python main.py --config=tests/faults/tiny_run.py
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1]))

import tiny


def get_config():
  return tiny.config(**{
      'name': 'tiny', 'num_epochs': 3, 'eval.attacks': ('clean', 'fgsm'),
      'log.samples_every': 2})
