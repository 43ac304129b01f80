"""Tests of ferd_jax.weights.robustbench and the command `teachers`.

None touches the internet.
"""

import collections
import csv
import os
import pathlib
import re
import subprocess
import sys

import https
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax import teachers
from ferd_jax import torch_io
from ferd_jax.core import downloads
from ferd_jax.weights import robustbench

L2_TABLE = (pathlib.Path(__file__).parents[3] / 'shared' / 'data'
            / 'robustbench_l2.csv')


def test_table():
  entries = robustbench.entries()
  counts = collections.Counter((entry.dataset, entry.norm) for entry in entries)
  assert counts == {('cifar10', 'Linf'): 66, ('cifar10', 'L2'): 21,
                    ('cifar100', 'Linf'): 35}
  keys = {(entry.dataset, entry.name) for entry in entries}
  assert len(keys) == len(entries)
  # What was trained against nothing is one network in both norms.
  addresses = [entry.address for entry in entries
               if entry.name != 'L2/Standard']
  assert len(set(addresses)) == len(addresses)
  for entry in entries:
    assert re.fullmatch(
        r'https://drive\.google\.com/uc\?id=[\w-]{33}|https://github\.com/'
        r'RobustBench/robustbench/releases/download/v1\.1/[\w-]+\.pth\.tar',
        entry.address)
    assert 0 <= entry.autoattack < entry.clean < 1
    assert (entry.adaptive is not None) == ('meansparse' in entry.arch)
    assert entry.adaptive is None or entry.adaptive < entry.autoattack
    assert entry.eps in {'Linf': ('8/255', '0.031'), 'L2': ('0.5',)}[entry.norm]
    assert (entry.options.get('padding') == 'same') == (
        'dm_' in entry.arch or 'ra_' in entry.arch)
    assert ('standardise' in entry.options) == (entry.id == 'Ding2020MMA')


@pytest.mark.parametrize('entry', robustbench.entries(),
                         ids=lambda entry: f'{entry.dataset}-{entry.name}')
def test_every_entry_builds(entry):
  model = models.build(entry.arch, 10, **entry.options)
  for name, value in entry.options.items():
    assert getattr(model, name) == value
  assert model.mean is None or len(model.mean) in (1, 3)


@pytest.mark.parametrize(('dataset', 'name', 'arch', 'clean', 'options'), [
    ('cifar10', 'Chen2021LTD_WRN34_10', 'wrn_34_10', 0.8521,
     {'activation': 'relu', 'padding': 'both'}),
    ('cifar10', 'Hendrycks2019Using', 'wrn_28_10', 0.8711,
     {'activation': 'relu', 'padding': 'both', 'mean': (0.5,),
      'std': (0.5,)}),
    ('cifar10', 'Wang2023Better_WRN-28-10', 'dm_wrn_28_10', 0.9244,
     {'activation': 'silu', 'padding': 'same',
      'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2471, 0.2435, 0.2616)}),
    ('cifar10', 'Wong2020Fast', 'preact_resnet18', 0.8334,
     {'activation': 'relu', 'padding': 'both', 'shortcut_input': 'input',
      'final_bn': False, 'mean': (0.4914, 0.4822, 0.4465),
      'std': (0.2471, 0.2435, 0.2616)}),
    ('cifar10', 'Engstrom2019Robustness', 'resnet50', 0.8703,
     {'activation': 'relu', 'padding': 'both',
      'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2023, 0.1994, 0.2010)}),
    ('cifar100', 'Addepalli2021Towards_PARN18', 'preact_resnet18', 0.6202,
     {'activation': 'relu', 'padding': 'both', 'shortcut_input': 'preact',
      'final_bn': True}),
    ('cifar100', 'Gowal2020Uncovering', 'dm_wrn_70_16', 0.6086,
     {'activation': 'silu', 'padding': 'same',
      'mean': (0.5071, 0.4865, 0.4409), 'std': (0.2673, 0.2564, 0.2762)}),
])
def test_published_facts(dataset, name, arch, clean, options):
  entry = robustbench.find(dataset, name)
  assert entry.arch == arch and entry.clean == pytest.approx(clean)
  assert entry.options == options
  assert (entry.select, robustbench.find(
      'cifar10', 'Andriushchenko2020Understanding').select) == (None, 'last')


@pytest.mark.skipif(not L2_TABLE.exists(), reason='needs the published table')
def test_all_networks_against_l2_are_there():
  with L2_TABLE.open() as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    entry = robustbench.find('cifar10', row['id'], 'L2')
    assert (entry.clean, entry.autoattack) == pytest.approx(
        (float(row['clean']) / 100, float(row['autoattack']) / 100))
    assert (entry.eps, entry.address) == (row['eps'], row['address'])
    assert entry.arch in (row['arch'], f'meansparse_{row["arch"]}')
    for name in ('activation', 'padding', 'shortcut_input'):
      assert entry.options.get(name, '') == row[name]
    for name in ('mean', 'std'):
      assert entry.options.get(name, ()) == tuple(
          map(float, row[name].split()))
  assert len(rows) == sum(entry.norm == 'L2'
                          for entry in robustbench.entries())


def test_ids_repeat_across_norms():
  inf, two = (robustbench.find('cifar10', 'Rice2020Overfitting', norm)
              for norm in ('Linf', 'L2'))
  assert robustbench.find('cifar10', 'Rice2020Overfitting') == inf
  assert robustbench.find('cifar10', 'L2/Rice2020Overfitting') == two
  assert robustbench.find('cifar10', 'L2/Rice2020Overfitting', 'L2') == two
  assert (inf.arch, two.arch) == ('wrn_34_20', 'preact_resnet18')
  assert (inf.name, two.name) == ('Rice2020Overfitting',
                                  'L2/Rice2020Overfitting')
  assert robustbench.in_both_norms('cifar10', 'Rice2020Overfitting')
  assert not robustbench.in_both_norms('cifar10', 'Rony2019Decoupling')
  assert not robustbench.in_both_norms('cifar100', 'Rice2020Overfitting')


@pytest.mark.parametrize(('dataset', 'name', 'message'), [
    ('cifar10', 'Rony2019Decoupling',
     'cifar10 against Linf; there is one against L2, L2/Rony2019Decoupling'),
    ('cifar10', 'L2/Wong2020Fast',
     'cifar10 against L2; there is one against Linf, Linf/Wong2020Fast'),
    ('cifar10', 'L2/Rice2020', 'against L2; did you mean Rice2020Overfitting'),
    ('cifar100', 'L2/Rice2020Overfitting',
     'cifar100 against L2; there is one against Linf'),
    ('cifar10', 'L1/Standard', "norm of robustbench='L1'.*'Linf', 'L2'"),
    ('cifar10', 'Rice2020', 'did you mean Rice2020Overfitting'),
    ('cifar10', 'chen2021ltd_wrn34_10', 'did you mean Chen2021LTD_WRN34_10'),
    ('cifar10', 'Cui2023Decoupled_WRN-34-10_autoaug', 'one of cifar100'),
    ('cifar100', 'xyz', 'id of cifar100; python -m ferd_jax.teachers list'),
    ('digits', 'Standard', "data set cifar10 or cifar100, not 'digits'"),
])
def test_unknown_ids(dataset, name, message):
  with pytest.raises(ValueError, match=message):
    robustbench.find(dataset, name)


def test_options_beside_an_id():
  entry = robustbench.find('cifar10', 'Wong2020Fast')
  assert entry.options_with({'mean': [0.4914, 0.4822, 0.4465],
                             'activation': 'relu'}) == entry.options
  for given in ({'activation': 'silu'}, {'width': 8}):
    with pytest.raises(ValueError, match="beside robustbench='Wong2020Fast'"):
      entry.options_with(given)
  # How to attack is no part of what a network is.
  sparse = robustbench.find('cifar10', 'L2/Amini2024MeanSparse_S-WRN-70-16')
  assert sparse.options_with({'straight_through': True}) == {
      **sparse.options, 'straight_through': True}
  assert 'it leaves 87.28%' in sparse.remark and '84.33%' in sparse.remark
  assert not entry.remark


def test_cache(monkeypatch):
  entry = robustbench.find('cifar100', 'Rice2020Overfitting')
  for variables, start in [
      ({'FERD_JAX_CACHE': '/a', 'XDG_CACHE_HOME': '/b'}, '/a/'),
      ({'XDG_CACHE_HOME': '/b'}, '/b/ferd_jax/'),
      ({'HOME': '/c'}, '/c/.cache/ferd_jax/')]:
    for name in ('FERD_JAX_CACHE', 'XDG_CACHE_HOME'):
      monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    assert str(robustbench.cached_path(entry)) == (
        f'{start}teachers/cifar100/Rice2020Overfitting.pt')
  entry = robustbench.find('cifar10', 'L2/Rice2020Overfitting')
  assert str(robustbench.cached_path(entry)).endswith(
      'teachers/cifar10/L2/Rice2020Overfitting.pt')


@pytest.fixture(scope='module')
def running():
  with https.serving() as server:
    yield server


@pytest.fixture
def server(running, tmp_path, monkeypatch):
  monkeypatch.setenv('FERD_JAX_CACHE', str(tmp_path / 'cache'))
  torch_io.write_state_dict(tmp_path / 'net.pt', {'a': np.zeros((40, 40))})
  weights, page = (tmp_path / 'net.pt').read_bytes(), 'text/html'
  running.requests.clear()
  form = (b'<html><form id="download-form" action="%s" method="get">'
          b'<input type="submit" value="Download anyway"/>'
          b'<input type="hidden" name="id" value="a b">'
          b'<input type="hidden" name="uuid" value="7"></form></html>')
  running.files = {
      '/net': https.File(weights),
      '/short': https.File(weights, ranges=False, cuts=[len(weights) - 10] * 9),
      '/quota': https.File(b'<html><p>Too many users</p></html>', page),
      # A page that says it is a file.
      '/page': https.File(b'<!DOCTYPE html><html></html>'),
      '/form': https.File(form % b'/form', page),
      '/form?id=a+b&uuid=7': https.File(weights),
      '/trap': https.File(form % b'http://127.0.0.1:9/form', page)}
  running.weights = weights
  return running


def entry_at(address):
  known = robustbench.find('cifar10', 'Standard')
  return type(known)(**vars(known) | {'address': address})


@pytest.mark.parametrize(('path', 'requests'), [
    ('/net', ['/net']), ('/form', ['/form', '/form?id=a+b&uuid=7'])])
def test_fetch(server, path, requests):
  entry = entry_at(server.address + path)
  for _ in range(2):  # The second time it is there.
    fetched = robustbench.fetch(entry)
    assert fetched == robustbench.cached_path(entry)
    assert fetched.read_bytes() == server.weights
    assert sorted(p.name for p in fetched.parent.iterdir()) == [
        'Standard.pt', 'Standard.pt.sha256']
  assert [path for path, _ in server.requests] == requests
  damaged = bytearray(server.weights)
  damaged[len(damaged) // 2] ^= 1
  fetched.write_bytes(damaged)
  assert robustbench.fetch(entry).read_bytes() == server.weights


@pytest.mark.parametrize(('path', 'reason'), [
    ('/gone', '404'), ('/short', r'[\d,]+ of [\d,]+ bytes came|Incomplete'),
    ('/quota', 'a page instead of the file'), ('/page', 'HTML page'),
    ('/trap', 'by https, got http://127.0.0.1:9/form')])
def test_failed_downloads_say_which_file_to_put_where(server, path, reason):
  entry = entry_at(server.address + path)
  with pytest.raises(OSError, match=reason) as error:
    robustbench.fetch(entry)
  message = str(error.value)
  assert entry.address in message
  assert f'put it at {robustbench.cached_path(entry)}' in message
  assert '\n' not in message
  assert list(robustbench.cached_path(entry).parent.iterdir()) == []


def test_without_a_network(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('FERD_JAX_CACHE', str(tmp_path))
  def refuse(*args, **kwargs):
    raise OSError('Name or service not known')
  monkeypatch.setattr(downloads, 'connect', refuse)
  with pytest.raises(SystemExit) as stop:
    teachers.main(['fetch', 'cifar10', 'Rice2020Overfitting'])
  assert 'Name or service not known' in stop.value.code
  assert f'put it at {tmp_path}/teachers/cifar10/Rice' in stop.value.code
  with pytest.raises(SystemExit) as stop:
    teachers.main(['fetch', 'cifar10', 'Rice2020Overfitting', '--norm=L2'])
  assert f'put it at {tmp_path}/teachers/cifar10/L2/Rice' in stop.value.code
  with pytest.raises(SystemExit, match='error: .*did you mean'):
    teachers.main(['fetch', 'cifar10', 'Rice2020'])


def test_list(capsys):
  teachers.main(['list'])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 123
  for line in (
      r'cifar100 +Rice2020Overfitting +preact_resnet18 +53.83% +18.95% +Linf '
      r'+8/255 +relu, shortcut_input preact, normalised$',
      r'cifar10 +L2/Ding2020MMA +wrn_28_4 +88.02% +66.09% +L2 +0.5 +relu, '
      r'standardise$', r'75.28% .*AutoAttack overrates it \(73.10%\)$'):
    assert re.search(line, '\n'.join(lines), re.MULTILINE)
  for options, number in ((['--dataset=cifar100'], 36), (['--norm=L2'], 22),
                          (['--dataset=cifar100', '--norm=L2'], 1)):
    teachers.main(['list', *options])
    assert len(capsys.readouterr().out.splitlines()) == number


def test_list_cut_short(tmp_path):
  # As by `| head`: nobody reads on.
  reader, writer = os.pipe()
  os.close(reader)
  with open(tmp_path / 'errors', 'w') as errors:
    done = subprocess.run(
        [sys.executable, '-m', 'ferd_jax.teachers', 'list'], stdout=writer,
        stderr=errors, check=False)
  os.close(writer)
  assert done.returncode == 0
  assert not (tmp_path / 'errors').read_text()
