"""The report of a recorded run: every picture, every table, what is missing."""

import base64
from html import parser as html_parser
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import made_runs
import numpy as np
import pytest
import tiny

from ferd_jax import report
from ferd_jax import train
from ferd_jax.core import reporting
from ferd_jax.reports import embedding
from ferd_jax.reports import records
from ferd_jax.run import sessions

pytest.importorskip('matplotlib')

_ROOT = pathlib.Path(__file__).parents[1]
_GOOD, _BAD = made_runs.right(9, 8, 7, 6), made_runs.right(8, 4, 4, 0)


def _main(*argv):
  """Returns the exit status."""
  try:
    report.main(list(map(str, argv)))
  except SystemExit as stop:
    return stop.code
  return 0


class _Page(html_parser.HTMLParser):
  """Collects pictures, sections, scripts and what is said to be missing."""

  def __init__(self, text):
    super().__init__()
    self.pictures, self.sections, self.open, self.missing = [], [], [], []
    self.outside = []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    if tag not in ('meta', 'link', 'img'):
      self.open.append(tag)
    if tag == 'img':
      self.pictures.append((values['alt'], values['src']))
    if tag == 'section':
      self.sections.append(values['id'])
    for name in ('src', 'href'):
      if re.match(r'(https?:)?//', values.get(name) or ''):
        self.outside.append(values[name])
    if tag == 'script':
      self.outside.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if data.startswith('Not here'):
      self.missing.append(data)


def _drawn(page):
  """Checks that every picture is one with something drawn in it."""
  for alt, source in page.pictures:
    kind, _, data = source.partition(',')
    assert kind == 'data:image/svg+xml;base64', alt
    svg = base64.b64decode(data).decode()
    assert svg.rstrip().endswith('</svg>'), alt
    # A frame alone has some ten paths.
    assert len(re.findall(r'<(?:path|use|image)\b', svg)) > 20, alt


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of seconds with all that a report can show."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  config = tiny.config(**{
      'eval.every': 1, 'eval.attacks': ('clean', 'fgsm'),
      'eval.curve_attacks': ('clean',), 'eval.target_examples': 8})
  experiment = tiny.claim(config, workdir)
  train.train(experiment, workdir, reporter=reporting.SILENT)
  results = json.loads((workdir / 'results.json').read_text())
  sweep = [results | {'eps': eps} for eps in (0.05, 0.1)]
  (workdir / 'sweep.json').write_text(json.dumps(sweep))
  # As a run leaves them that draws samples.
  with np.load(next(iter(sorted((workdir / 'pool').glob('*.npz'))))) as file:
    images, labels = file['images'], file['labels']
  (workdir / 'samples').mkdir(exist_ok=True)
  np.savez(workdir / 'samples' / 'epoch_00002.npz', **{
      'images': np.round(images * 255).astype(np.uint8), 'labels': labels,
      'pairs/clean': images, 'pairs/attacked': np.clip(images + 0.1, 0, 1),
      'pairs/labels': labels})
  return workdir


@pytest.fixture(scope='module')
def page(run):
  assert not _main(run)
  return _Page((run / 'report.html').read_text())


def test_every_picture_is_drawn(page):
  assert page.missing == []
  _drawn(page)
  assert [alt.partition(',')[0] for alt, _ in page.pictures] == [
      'Accuracy of each class', 'Learning curves', 'Classes over epochs',
      'Robustness against eps', 'Targeted attacks', 'Class weights and D',
      'Losses', 'Synthetic images', 'FAE and UTAE',
      'Where the teacher sees the images']


def test_it_needs_nothing_else_and_is_small(run, page):
  assert page.outside == []
  assert (run / 'report.html').stat().st_size < 3e6


def test_it_says_what_made_the_run(run):
  text = (run / 'report.html').read_text()
  session, = sessions.read(run)
  for words in (session['versions']['jax'], session['hardware']['processor'],
                'inner.steps', 'teacher average', 'images through the teacher',
                'time of the final evaluation'):
    assert words in text, words


def _chromium():
  return next(filter(None, map(shutil.which, (
      'chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.mark.skipif(_chromium() is None, reason='needs Chromium')
def test_no_error_in_a_browser(run, page, tmp_path):
  """And it prints: the PDF is no empty page."""
  del page
  done = subprocess.run(
      [_chromium(), '--headless', '--no-sandbox', '--disable-gpu',
       '--enable-logging=stderr', f'--user-data-dir={tmp_path / "profile"}',
       f'--print-to-pdf={tmp_path / "report.pdf"}',
       f'file://{run / "report.html"}'], capture_output=True, text=True,
      check=True, timeout=120)
  assert 'CONSOLE' not in done.stderr
  assert (tmp_path / 'report.pdf').stat().st_size > 50_000


@pytest.mark.slow
def test_pictures_for_a_paper(run, tmp_path, capsys):
  """Of a column's width, fonts embedded as such."""
  assert not _main(run, f'--figures={tmp_path}', '--no-networks',
                   f'--out={tmp_path / "r.html"}')
  assert 'embedding: left out' in capsys.readouterr().err
  names = {path.stem for path in tmp_path.glob('*.pdf')}
  assert names == {'classes', 'learning_curves', 'classes_over_epochs', 'radii',
                   'targets', 'weights', 'losses', 'images', 'pairs'}
  for path in tmp_path.glob('*.pdf'):
    assert path.read_bytes().startswith(b'%PDF')
    assert b'/Type3' not in path.read_bytes()
    box = re.search(rb'/MediaBox \[ *0 0 ([\d.]+) ', path.read_bytes())
    assert float(box[1]) == pytest.approx(72 * 3.25, abs=1)
    assert path.with_suffix('.png').stat().st_size > 3000


def test_what_is_missing_is_said_in_its_place(run, tmp_path):
  """An older run without most, one that has not ended, one of no epochs."""
  made_runs.write(tmp_path / 'older', {'clean': _GOOD}, flags=False)
  made_runs.write(tmp_path / 'new', {}, finished=False)
  begun = tmp_path / 'begun'
  shutil.copytree(run, begun)
  (begun / 'results.json').unlink()
  (begun / 'metrics.jsonl').write_text(
      (begun / 'metrics.jsonl').read_text().splitlines()[0] + '\n{"epo')
  out = tmp_path / 'r.html'
  assert not _main(tmp_path / 'older', tmp_path / 'new', begun,
                   f'--out={out}', '--no-networks')
  found = _Page(out.read_text())
  _drawn(found)
  said = ' '.join(found.missing)
  for words in ('the run has not ended; 0 of', 'the run has not ended; 1 of',
                'sampler of this method weighs no classes',
                'no synthetic images', 'left out: --no-networks',
                'eval.target_examples', 'samples/ has no images'):
    assert words in said, words
  assert 'not recorded by the version that made the run' in out.read_text()
  assert {alt for alt, _ in found.pictures} >= {
      'Accuracy of each class, older', 'Losses, begun'}


def test_record_of_another_form_is_said_in_its_place(tmp_path):
  other = tmp_path / 'other'
  made_runs.write(other, {'clean': _GOOD}, teacher={'clean': _GOOD})
  results = json.loads((other / 'results.json').read_text())
  del results['models']['student']['clean']['per_class']
  (other / 'results.json').write_text(json.dumps(results))
  out = tmp_path / 'r.html'
  assert not _main(other, f'--out={out}', '--no-networks')
  said = _Page(out.read_text()).missing
  assert any("of another form (KeyError: 'per_class')" in each
             for each in said)


def test_teacher_that_is_gone_is_named(run, tmp_path):
  moved = tmp_path / 'moved'
  shutil.copytree(run, moved)
  config = json.loads((moved / 'config.json').read_text())
  config['data'] |= {'noise_examples': 0, 'name': '/nowhere/data.npz'}
  (moved / 'config.json').write_text(json.dumps(config))
  with pytest.raises(records.Missing, match='cannot be loaded.*/nowhere/data'):
    embedding.embed(records.read(moved))


@pytest.fixture(scope='module')
def comparison(tmp_path_factory):
  """A comparison of two methods, one of them with two seeds."""
  place = tmp_path_factory.mktemp('compare')
  teacher = {'clean': _GOOD, 'pgd20': _GOOD}
  curve = [(0.5, 0.4, 0.3, 0.2), (0.9, 0.8, 0.7, 0.6)]
  for seed, student in enumerate((_GOOD, _BAD)):
    made_runs.write(place / 'FERD' / f'seed_{seed}',
                    {'clean': _GOOD, 'pgd20': student}, seed, teacher,
                    curve=curve)
  made_runs.write(place / 'no_FAE' / 'seed_0', {'clean': _BAD, 'pgd20': _BAD},
                  0, teacher, inner__gamma=0., curve=curve)
  made_runs.write(place / 'no_FAE' / 'seed_1', {}, 1, inner__gamma=0.,
                  finished=False)
  (place / 'rows.json').write_text(json.dumps(
      {'FERD': 'FERD', 'no_FAE': 'no FAE & more'}))
  return place


def test_comparison_has_its_table_and_curves(comparison, tmp_path):
  out = tmp_path / 'r.html'
  assert not _main(comparison, f'--out={out}')
  text = out.read_text()
  found = _Page(text)
  _drawn(found)
  assert [alt for alt, _ in found.pictures] == [
      'Average and worst class', 'Learning curves', 'Classes']
  assert 'no FAE &amp; more' in text and 'the run has not ended' in text
  assert '75.0' in text


def test_many_runs_are_shown_by_method(tmp_path):
  for seed in range(7):
    made_runs.write(tmp_path / f'run{seed}', {'clean': _GOOD}, seed)
  out = tmp_path / 'r.html'
  assert not _main(tmp_path, f'--out={out}')
  text = out.read_text()
  assert '7 runs are too many' in text and 'made' in text
  assert len(_Page(text).pictures) == 2  # There is no learning curve.


@pytest.mark.parametrize('kind', ['md', 'latex', 'csv'])
def test_tables_over_seeds_by_class(kind, comparison, capsys):
  assert not _main(comparison, f'--format={kind}')
  shown, said = capsys.readouterr()
  assert 'the run has not ended' in said
  if kind == 'md':
    assert '## PGD-20, by class' in shown
    # 90% and 80% of class 0 with the two seeds.
    assert re.search(r'\| +0 \| +90\.0 ± 0\.0 \| +85\.0 ± 7\.1 \| +80\.0 \|',
                     shown)
    assert '**30.0 ± 42.4**' in shown
  if kind == 'latex':
    assert r'no FAE \& more' in shown and r'\toprule' in shown
    assert r'0 & 90.0$_{\pm 0.0}$ & 85.0$_{\pm 7.1}$ & 80.0 \\' in shown
    assert shown.count(r'\begin{table}') == shown.count(r'\end{table}') == 3
  if kind == 'csv':
    rows = [line.split(',') for line in shown.splitlines()]
    assert len({len(row) for row in rows}) == 1
    line, = (row for row in rows
             if row[:3] == ['FERD', 'pgd20', 'class 0'])
    assert float(line[3]) == pytest.approx(0.85) and line[-1] == '0.9 0.8'


def test_mistakes_are_one_line(run, tmp_path, monkeypatch):
  made_runs.write(tmp_path / 'begun', {}, finished=False)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  for argv, words in (
      ([tmp_path / 'absent'], 'there is no such directory'),
      (['gs://bucket/run'], 'read no buckets'),
      ([tmp_path / 'begun' / '..', '--format=md'], 'the run has not ended'),
      ([run, '--format=md', '--out=x'], 'no --out'),
      ([run, '--width=100'], 'width=100'),
      ([run, '--reference=x'], "reference='x'"),
      ([run, '--private'], '--private'),
      ([run, run, '--push-to-hub=a/b'], 'Expected one run'),
      ([run, '--push-to-hub=a/b'], 'pip install huggingface_hub'),
      ([tmp_path, '--push-to-hub=a/b'], 'pip install huggingface_hub')):
    status = _main(*argv)
    assert status.startswith('error: ') and words in status, argv
    assert '\n' not in status


def test_push(tmp_path, monkeypatch, capsys):
  run = tmp_path / 'run'
  made_runs.write(run, {'clean': _GOOD})
  (run / 'export').mkdir()
  (run / 'export' / 'README.md').write_text('')
  calls = []
  class Api:
    def create_repo(self, repository, **options):
      calls.append((repository, options))
    def upload_folder(self, *, repo_id, folder_path, commit_message):
      calls.append((repo_id, folder_path))
      return 'https://hub/there'
    def upload_file(self, *, repo_id, path_or_fileobj, path_in_repo,
                    commit_message):
      calls.append((path_or_fileobj, path_in_repo))
  client = types.ModuleType('huggingface_hub')
  client.HfApi = Api
  monkeypatch.setitem(sys.modules, 'huggingface_hub', client)
  out = tmp_path / 'r.html'
  assert not _main(run, '--push-to-hub=me/student', '--no-networks',
                   f'--out={out}')
  assert calls == [('me/student', {'private': False, 'exist_ok': True}),
                   ('me/student', str(run / 'export')),
                   (str(out), 'report.html')]
  assert 'Pushed to https://hub/there' in capsys.readouterr().err
  made_runs.write(tmp_path / 'made', {'clean': _GOOD})
  assert 'README.md' in _main(tmp_path / 'made', '--push-to-hub=me/it')


def test_tables_need_no_matplotlib_and_plots_name_the_extra(comparison):
  program = f"""
import importlib.util, runpy, sys
real = importlib.util.find_spec
sys.modules['matplotlib'] = None
importlib.util.find_spec = lambda name, *args: (
    None if name == 'matplotlib' else real(name, *args))
sys.argv = ['x', {str(comparison)!r}, '--format=csv']
runpy.run_module('ferd_jax.report', run_name='__main__')
sys.argv.pop()
runpy.run_module('ferd_jax.report', run_name='__main__')
"""
  done = subprocess.run([sys.executable, '-c', program], cwd=_ROOT,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 1 and done.stdout.startswith('method,attack')
  last = done.stderr.splitlines()[-1]
  assert last.startswith('error: matplotlib missing') and '[report]' in last
