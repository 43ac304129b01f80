"""What is drawn of tasks, on terminals of several widths and elsewhere."""

import io

import pytest
from rich import console as consoles

from ferd_jax.core import board

_TRAINING = [
    board.Row('epoch 120/220', share=0.53, beside='about 10:20:05 left'),
    board.Row('distill', '312/400', 0.78, '1,870 images/s', [
        ('loss', 0.5321, -1), ('clean_agreement', 0.932, 1),
        ('adv_agreement', 0.81, 0), ('adv_loss', 0.31, 0),
        ('clean_loss', 0.21, -1), ('noticed_kappa', 3.2, 0)])]
_EVALUATION = [
    board.Row('evaluation', share=0.41, beside='about 12:20 left'),
    board.Row('student, autoattack_torchattacks, apgd-ce', '', 0.5,
              values=[('robust', 0.725, 0)])]
_DIGITS = board.Bars('class probabilities', [str(i) for i in range(10)],
                     [0.1, 0.2, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.15, 0.05])
_MANY = board.Bars('class probabilities', [f'class{i}' for i in range(200)],
                   [i / 19900 for i in range(200)])


def _drawn(tasks, bars, width, footer='1 x cpu, memory 2.1 of 8.0 GiB'):
  """Returns the lines that a terminal of a width shows."""
  console = consoles.Console(file=io.StringIO(), width=width, record=True,
                             force_terminal=True)
  console.print(board.Drawn(
      lambda columns: board.rows(tasks, bars, footer, columns)))
  return console.export_text().splitlines()


@pytest.mark.parametrize('bars', [None, _DIGITS, _MANY])
@pytest.mark.parametrize('tasks', [_TRAINING, _EVALUATION])
@pytest.mark.parametrize('width', [20, 40, 80, 120, 250])
def test_rows_fit_the_width(tasks, bars, width):
  lines = _drawn(tasks, bars, width)
  assert max(map(len, lines)) <= width
  assert len(lines) == len(board.rows(tasks, bars, 'footer', width))


@pytest.mark.parametrize('tasks', [_TRAINING, _EVALUATION])
@pytest.mark.parametrize('width', [80, 120])
def test_a_bar_is_a_bar(tasks, width):
  for task, line in zip(tasks, _drawn(tasks, _DIGITS, width), strict=False):
    full = sum(map(line.count, '━╸'))
    assert full + line.count('─') >= 20
    assert full / (full + line.count('─')) == pytest.approx(task.share,
                                                            abs=0.03)
    assert f' {task.share:.0%}' in line and task.beside in line


def test_training_at_80_columns():
  whole, phase, values, title, classes, footer = _drawn(_TRAINING, _DIGITS, 80)
  assert whole.startswith('epoch 120/220 ')
  assert phase.startswith('distill 312/400 ') and '1,870 images/s' in phase
  assert values == ('loss 0.532 ↘  clean_agreement 0.932 ↗  '
                    'adv_agreement 0.81 →  adv_loss 0.31 →')
  assert title == 'class probabilities: most 1 20.0%, least 2 5.0%'
  assert classes.split() == '0 ▅ 1 █ 2 ▃ 3 ▃ 4 ▅ 5 ▅ 6 ▅ 7 ▅ 8 ▆ 9 ▃'.split()
  assert footer == '1 x cpu, memory 2.1 of 8.0 GiB'


def test_names_of_classes_are_cut_before_they_are_left_out():
  names = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog',
           'horse', 'ship', 'truck']
  bars = board.Bars('weights', names, [0.1] * 10)
  *_, narrow, _ = _drawn([], bars, 80)
  assert narrow.startswith('airp █ auto █ bird █ cat █ ')
  *_, wide, _ = _drawn([], bars, 140)
  assert wide.startswith('airplane █   automobile █')
  *_, bare, _ = _drawn([], bars, 40)
  assert bare == '█' * 10


def test_many_classes_are_blocks():
  *_, title, first, second, third, _ = _drawn([], _MANY, 80)
  assert title == 'class probabilities: most class199 1.0%, least class0 0.0%'
  assert [len(row) for row in (first, second, third)] == [80, 80, 40]
  assert first[0] == '▁' and third[-1] == '█'


def test_terminals_that_know_no_signs():
  console = consoles.Console(file=io.TextIOWrapper(io.BytesIO(), 'ascii'),
                             width=80, force_terminal=True)
  console.print(board.Drawn(
      lambda columns: board.rows(_TRAINING, _DIGITS, '', columns)))
  console.file.seek(0)
  assert '=====' in console.file.read()


def test_sentence():
  assert board.sentence(_TRAINING) == (
      'epoch 120/220: 53%, about 10:20:05 left; distill 312/400: 78%, 1,870 '
      'images/s, loss 0.532, clean_agreement 0.932, adv_agreement 0.81')
  assert board.sentence([board.Row('work', '3')]) == 'work 3'
