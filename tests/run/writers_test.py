"""What is told of an epoch, to whom, and what happens if that fails."""

import json
import sys
import types

from etils import epath
import jax
import noting
import numpy as np
import pytest
import tiny

from ferd_jax.core import validate
from ferd_jax.run import writers

_RECORD = {'epoch': 3, 'time': 1.7e9, 'distill/loss': 0.5, 'distill/steps': 12,
           'distill/bn': 2.5, 'sampler/probs': [0.25, 0.75], 'seconds': 7.5,
           'sampler/measured': [True, True], 'devices': '1 x cpu',
           'test_clean_per_class': [0.5, None]}
_PICTURE = np.zeros((4, 5, 3), np.uint8)
_RESULTS = {'epoch': 4, 'models': {'student': {'clean': {
    'average': 0.9, 'worst': 0.8, 'nsd': None}}}}


def _run(tmp_path, **changes):
  values = {'workdir': epath.Path(tmp_path), 'identity': {'name': 'tiny'},
            'num_epochs': 4, 'done_epochs': 2, 'class_names': ('a', 'b'),
            'lines': [], 'reporter': noting.Reporter()}
  return writers.Run(**values | changes)


def _tell(run, *names):
  told = writers.Writers(run, names)
  run.lines.append(json.dumps(_RECORD))
  told.epoch(_RECORD)
  told.pictures(3, {'samples': _PICTURE})
  told.results(_RESULTS)
  told.close()


def test_files_and_lines(tmp_path):
  run = _run(tmp_path)
  _tell(run, 'jsonl', 'terminal')
  assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == _RECORD
  assert run.reporter.lines == ['epoch 3/4: distill/loss 0.5, seconds 7.5']


def test_nobody_is_told_by_other_processes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  run = _run(tmp_path)
  _tell(run, 'jsonl', 'terminal')
  assert not run.reporter.lines and not list(tmp_path.iterdir())


def test_numbers_and_classes():
  assert writers.scalars(_RECORD, ('a', 'b')) == {
      'distill/loss': 0.5, 'distill/steps': 12, 'distill/bn': 2.5,
      'seconds': 7.5, 'sampler/probs/a': 0.25, 'sampler/probs/b': 0.75,
      'sampler/measured/a': 1., 'sampler/measured/b': 1.,
      'test_clean_per_class/a': 0.5}
  assert 'sampler/probs/a' not in writers.scalars(
      _RECORD | {'sampler/probs': [0.01] * 100}, [str(i) for i in range(100)])
  assert {name: values.tolist() for name, values in writers.of_classes(
      _RECORD).items()} == {'sampler/probs': [0.25, 0.75],
                            'sampler/measured': [1., 1.],
                            'test_clean_per_class': [0.5]}
  assert writers.of_results(_RESULTS) == {
      'results/student/clean/average': 0.9, 'results/student/clean/worst': 0.8}


class _Service(types.ModuleType):
  """Stands for wandb or trackio, and notes what it is told."""
  Image = Histogram = staticmethod(lambda values: ('seen', np.shape(values)))

  def __init__(self, name):
    super().__init__(name)
    self.begun, self.told, self.over = [], [], 0

  def init(self, **options):
    self.begun.append(options)

  def log(self, values, step):
    self.told.append((step, values))

  def finish(self):
    self.over += 1


@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_services(tmp_path, monkeypatch, name):
  service = _Service(name)
  monkeypatch.setitem(sys.modules, name, service)
  for _ in range(2):  # Two sessions are one run.
    run = _run(tmp_path)
    _tell(run, name)
    assert not run.reporter.lines
  first, second = service.begun
  assert first == second and first['resume'] == 'allow'
  assert first['project'] == 'ferd_jax' and first['name'].startswith('tiny-')
  assert first['config'] == {'name': 'tiny'} and service.over == 2
  steps, values = zip(*service.told[:3], strict=True)
  assert steps == (3, 3, 4)
  assert values[0]['distill/loss'] == 0.5
  assert values[0]['sampler/probs_histogram'] == ('seen', (2,))
  assert values[1] == {'samples': ('seen', (4, 5, 3))}
  assert values[2] == writers.of_results(_RESULTS)


def test_a_service_that_fails_stops_nothing(tmp_path, monkeypatch):
  service = _Service('wandb')
  def refuse(*args, **options):
    raise ConnectionError('no network')
  service.log = refuse
  monkeypatch.setitem(sys.modules, 'wandb', service)
  run = _run(tmp_path)
  _tell(run, 'wandb', 'jsonl')
  assert run.reporter.lines == [
      'Warning: log.writers: wandb is told nothing more: no network.']
  assert (tmp_path / 'metrics.jsonl').exists()


def test_a_disk_that_is_full_stops_the_run(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  with pytest.raises(OSError):
    _tell(_run(tmp_path), 'jsonl')


def test_tensorboard(tmp_path):
  pytest.importorskip('tensorboardX')
  run = _run(tmp_path)
  _tell(run, 'tensorboard')
  assert not run.reporter.lines
  file, = (tmp_path / 'tensorboard').iterdir()
  content = file.read_bytes()
  for name in (b'distill/loss', b'sampler/probs', b'samples',
               b'results/student/clean/worst'):
    assert name in content


@pytest.mark.parametrize('name', ['tensorboard', 'wandb', 'trackio'])
def test_absent_package_names_the_extra(monkeypatch, name):
  monkeypatch.setattr('importlib.util.find_spec', lambda package: None)
  with pytest.raises(ValueError, match=(
      rf"^log.writers='{name}' needs \w+, which is not installed: pip install "
      rf'"\.\[{name}\]" in the directory of ferd_jax\.$')):
    writers.check(('jsonl', name))
  writers.check(('jsonl', 'terminal'))


@pytest.mark.parametrize('names', [('jsonl', 'jsonl'), ('json',)])
def test_unknown_writers_are_refused(names):
  with pytest.raises(validate.SettingError, match=r'log\.writers'):
    tiny.build(tiny.config(**{'log.writers': names}))
