"""What a run has to do, against its config and its budget."""

import json

import pytest
import tiny

from ferd_jax.run import budget
from ferd_jax.run import workload


@pytest.fixture(scope='module')
def experiment():
  return tiny.build(tiny.config(**{
      'num_epochs': 5, 'eval.every': 2, 'eval.attacks': (
          'clean', 'pgd20', 'autoattack_fast')}))


@pytest.fixture(scope='module')
def work(experiment):
  return workload.of(experiment, 'a device')


def test_steps_are_those_of_the_budget(experiment, work):
  for epoch in range(6):
    spent = budget.of(experiment.method, epoch)
    assert work.steps_until('synthesis', epoch) == spent.generator_steps
    assert work.steps_until('distill', epoch) == spent.student_steps


def test_all_that_is_left(experiment, work):
  works = work.works(0, [])
  images = len(experiment.examples.labels)
  assert works['epoch'].units == 5
  # Points after epochs 2, 4 and 5, and the evaluation at the end.
  assert works['student, clean'].units == 3 * 8 + images
  assert works['teacher, clean'].units == images
  passes = works['teacher, pgd20'].cost / works['teacher, clean'].cost
  assert passes == 20 * 2 + 1
  assert 'student, autoattack_fast, apgd-t' in works
  assert works['distill'].cost > works['student, clean'].cost > 0
  later = work.works(4, [])
  assert later['epoch'].units == 1
  assert later['student, clean'].units == 8 + images


def test_a_diagnosis_is_at_the_end():
  diagnosed = tiny.build(tiny.config(**{
      'eval.every': 1, 'eval.diagnosed_examples': 4}))
  work = workload.of(diagnosed, 'a device')
  assert not any('diagnose' in name for name in work.learning_curve)
  assert {'teacher, diagnose', 'student, diagnose'} <= work.evaluation.keys()


def test_speed_of_an_earlier_session(work):
  lines = [json.dumps({'epoch': epoch, 'devices': 'a device',
                       'distill/ms_per_step': 250.}) for epoch in (1, 2)]
  assert work.works(2, lines)['distill'].seconds == 0.25
  assert work.works(1, lines[:1])['distill'].seconds is None  # It compiled.
  other = [line.replace('a device', 'another') for line in lines]
  assert work.works(2, other)['distill'].seconds is None


def test_nothing_is_traced_where_nothing_is_shown(experiment, monkeypatch):
  def traced(*args):
    raise AssertionError('A network was traced.')
  monkeypatch.setattr('ferd_jax.models.passes.operations', traced)
  work = workload.of(experiment, 'a device', counted=False)
  assert work.works(0, [])['epoch'].units == 5
