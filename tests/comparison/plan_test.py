"""Plans: their rows, what is wrong with them, and those that are shipped."""

import pathlib

import made_runs
import pytest

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans
from ferd_jax.run import budget
from ferd_jax.run import command_line
from ferd_jax.run import config_files

_SHIPPED = sorted(path.stem for path in pathlib.Path(
    config_files.ROOT, 'configs', 'comparisons').glob('*.py')
                  if path.stem != 'methods')


def test_every_seed_of_every_row_in_turn(tmp_path):
  plan = plans.Plan('p', [
      plans.Row('as it is', 'digits'),
      plans.Row('no UTAE', 'digits', {'inner.gamma': 0, 'eps': '1/10'})],
      seeds=(1, 5), settings={'inner.gamma': 0.1, 'eval.attacks': ('clean',),
                              'student.width': None})
  runs = plans.runs(plan, tmp_path, ['--config.num_epochs=7'])
  assert [(run.row, run.seed) for run in runs] == [
      ('as it is', 1), ('no UTAE', 1), ('as it is', 5), ('no UTAE', 5)]
  assert runs[3].workdir == tmp_path / 'no_UTAE' / 'seed_5'
  config = runs[3].config  # The row's setting wins, then the command's.
  assert (config.inner.gamma, config.num_epochs, config.seed) == (0, 7, 5)
  assert config.eval.attacks == ('clean',) and config.eps == 0.1
  assert config.student.width is None
  assert runs[0].config.inner.gamma == 0.1
  # Each attacks the same teacher; it is done once.
  assert len({run.config.eval.teacher_dir for run in runs}) == 1
  assert runs[0].config.eval.teacher_dir == str(tmp_path / '_teachers')
  assert len([flag for flag in runs[3].flags if 'gamma' in flag]) == 1


@pytest.mark.parametrize('options, words', [
    ({'rows': []}, 'rows'), ({'seeds': ()}, 'seeds'),
    ({'seeds': (1, 1)}, r'seeds=\(1, 1\)'), ({'seeds': (-1,)}, 'seed=-1'),
    ({'rows': [plans.Row('a b', 'digits'), plans.Row('a_b', 'digits')]},
     "'a_b' and 'a b'")])
def test_plans_that_mean_nothing(options, words):
  with pytest.raises(ValueError, match=words):
    plans.Plan(**{'name': 'p', 'rows': [plans.Row('a', 'digits')]} | options)


@pytest.mark.parametrize('row, words', [
    (plans.Row('x', 'digits', {'synthesis.name': 'magic'}),
     "row 'x'.*synthesis.name='magic'.*'ferd'"),
    (plans.Row('x', 'digits', {'outer.name': 'nothing'}), 'outer.name'),
    (plans.Row('x', 'digits', {'inner.gama': 1}), 'inner.gama'),
    (plans.Row('x', 'diggits'), "row 'x'.*Did you mean digits"),
    (plans.Row('x', 'digits', ['--workdir=a']), "row 'x'")])
def test_row_with_a_mistake_is_named(row, words, tmp_path):
  plan = plans.Plan('p', [plans.Row('right', 'digits'), row])
  with pytest.raises(ValueError, match=words):
    plans.runs(plan, tmp_path)


def test_values_out_of_range_are_found_before_anything_starts(tmp_path):
  plan = plans.Plan('p', [plans.Row('x', 'digits:smoke', {'inner.gamma': -1})])
  run, *_ = plans.runs(plan, tmp_path)
  with pytest.raises(ValueError, match="row 'x'.*inner.gamma=-1"):
    plans.check(run)
  plan = plans.Plan('p', [plans.Row('x', 'digits:smoke')])
  run, *_ = plans.runs(plan, tmp_path)
  made_runs.write(run.workdir, {'clean': made_runs.LABELS < 2})
  with pytest.raises(ValueError, match="row 'x'.*to be of this config"):
    plans.check(run)  # The directory is another run's.


def test_only_and_other_seeds():
  plan = plans.Plan('p', [plans.Row(name, 'digits') for name in 'abc'])
  assert [row.name for row in plan.only(['c', 'a']).rows] == ['a', 'c']
  assert plan.with_seeds([4]).seeds == (4,)
  with pytest.raises(ValueError, match="row='d'"):
    plan.only(['d'])


def test_plan_of_a_command_line():
  rows = ['uniform: --config.sampler.name=uniform --config.eps=0.2',
          'gamma: --config.inner.gamma=0']
  plan = plans.from_flags(['digits:smoke'], rows, (0, 1))
  assert [row.name for row in plan.rows] == ['digits_smoke', 'uniform', 'gamma']
  assert plan.rows[1].flags == ['--config.sampler.name=uniform',
                                '--config.eps=0.2']
  assert plan.name == 'digits'
  plan = plans.from_flags(['digits', 'fashion_mnist'], rows[:1], (0,))
  assert [row.name for row in plan.rows] == [
      'digits', 'digits, uniform', 'fashion_mnist', 'fashion_mnist, uniform']
  for text in ('uniform', 'uniform: 3', ': --config.eps=1', 'a:'):
    with pytest.raises(ValueError, match='--row='):
      plans.from_flags(['digits'], [text], (0,))


def test_plan_from_a_file(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
      'from ferd_jax.comparison import plan\n'
      'def get_plan():\n'
      "  return plan.Plan('mine', [plan.Row('a', 'digits')])\n")
  assert plans.load(str(file)).name == 'mine'
  file.write_text('def get_plan():\n  return 1 / 0\n')
  with pytest.raises(ValueError, match='mine.py, line 2: ZeroDivisionError'):
    plans.load(str(file))
  file.write_text('def get_plan():\n  return 3\n')
  with pytest.raises(ValueError, match='to return a Plan, got int'):
    plans.load(str(file))
  with pytest.raises(ValueError, match=r'digit .*Did you mean digits'):
    plans.load('digit')


@pytest.mark.parametrize('name', _SHIPPED)
def test_shipped_plans_are_sound(name, tmp_path):
  plan = plans.load(name)
  assert plan.name == name
  # A choice between rates is made once for each.
  assert len(plan.seeds) >= 3 or name.endswith('_rates')
  assert plan.rows[0].name == 'FERD'
  for row in plan.rows:
    assert plans.runs(plan.only([row.name]), tmp_path)


def _synthesis(row, tmp_path):
  run, *_ = plans.runs(plans.Plan('p', [row]), tmp_path)
  return run.config.synthesis


@pytest.mark.parametrize('name', methods._BASELINES)
def test_rates_are_the_originals_or_five_times_them(name, tmp_path):
  original = command_line.load(f'baselines/{methods._BASELINES[name]}',
                               config_files.ROOT).synthesis
  rate = 'learning_rate' if name == 'DeepInversion' else 'generator_lr'
  for times in (1, 5):
    row, = methods.baselines('digits', {name: 40}, times)
    found = _synthesis(row, tmp_path)
    # Five steps at a higher rate are Fast's own config, ten a variant.
    assert found[rate] == pytest.approx(
        times * (2e-3 if name == 'Fast' else original[rate]))
    if name in ('DAFL', 'ZSKT', 'DFAD', 'DFQ'):
      assert found.student_steps_per_round == 1
    if name in ('Fast', 'DFHL-RS'):
      assert (found.generator_steps, found.latent_lr) == (40, 0.01)
    if name in ('CMI', 'DeepInversion'):
      assert found.steps == 40


def test_mixtures_have_the_rates_of_their_syntheses(tmp_path):
  row = methods.mixture('digits', 'Fast', 'ABSLD', 40)
  assert row.name == 'Fast + ABSLD'
  alone, = methods.baselines('digits', {'Fast': 40})
  assert _synthesis(row, tmp_path) == _synthesis(alone, tmp_path)


def test_one_budget_on_fashion_mnist(tmp_path):
  """As many passes through the teacher within a tenth, but as it is stated."""
  plan = plans.load('fashion_mnist').with_seeds([0])
  # DFHL-RS asks the student, and real images are made by nobody.
  plan = plan.only([row.name for row in plan.rows
                    if row.name not in ('DFHL-RS', 'real images + RSLAD')])
  passes = {}
  # No images of the data set are needed to count.
  more = ['--config.data.noise_examples=24', '--config.teacher.path=random']
  for run in plans.runs(plan, tmp_path, more):
    experiment = plans.check(run)
    spent = budget.of(experiment.method, run.config.num_epochs)
    passes[run.row] = spent.teacher_forward + spent.teacher_backward
  assert max(passes.values()) < 1.1 * passes['FERD']
  assert min(passes.values()) > passes['FERD'] / 1.1


def test_a_run_without_its_epochs_is_refused(tmp_path):
  plan = plans.Plan('p', [plans.Row('x', 'digits:smoke', [
      "--config.log.writers=('terminal',)"])])
  run, *_ = plans.runs(plan, tmp_path)
  with pytest.raises(ValueError, match="row 'x'.*log.writers with 'jsonl'"):
    plans.check(run)
