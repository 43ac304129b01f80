"""How much an evaluation has to do, by hand."""

import pytest

from ferd_jax.evaluation import results
from ferd_jax.evaluation import workload

_PROTOCOL = results.Protocol(
    ('clean', 'fgsm', 'pgd20', 'autoattack'), 8 / 255, target_examples=10,
    autoattack_examples=50)


def test_passes_of_a_model():
  works = workload.of_model('m', 7., _PROTOCOL, 100, 10)
  assert {name: (work.units, work.cost) for name, work in works.items()
          if 'autoattack' not in name} == {
      'm, clean': (100, 7.), 'm, fgsm': (100, 21.), 'm, pgd20': (100, 287.),
      'm, targets': (90, 42 * 7.)}
  assert [name for name in works if 'autoattack' in name] == [
      f'm, autoattack, {member}'
      for member in ('apgd-ce', 'apgd-t', 'fab-t', 'square')]


def test_robust_images_go_through_all_of_autoattack():
  every = workload.autoattack('autoattack', _PROTOCOL, 100, 10, robust=1.)
  # 101 gradients, 9 targets, 5,000 queries and the start.
  assert every['square'] == 50 * 5001
  assert every['apgd-t'] == pytest.approx(9 * every['apgd-ce'])
  half = workload.autoattack('autoattack', _PROTOCOL, 100, 10, robust=0.5)
  assert half['square'] == every['square'] / 2
  assert every['apgd-ce'] / 2 < half['apgd-ce'] < every['apgd-ce']


def test_what_is_left_once_some_are_done():
  found = {'clean': {'average': 0.9}, 'pgd20': {'average': 0.25}}
  left = workload.after('m', _PROTOCOL, found, 100, 10)
  assert left['m, clean'] == left['m, pgd20'] == 0 and 'm, fgsm' not in left
  assert left['m, autoattack, square'] == 50 * 5001 / 4
  found['autoattack'] = {'average': 0.2}
  left = workload.after('m', _PROTOCOL, found, 100, 10)
  assert not any(units for name, units in left.items())


def test_curves_and_diagnoses_are_counted():
  protocol = results.Protocol(
      ('clean',), 0.5, 'L2', curve_radii=(0.1, 0.5), diagnosed_examples=64)
  works = workload.of_model('m', 7., protocol, 100, 10)
  # 100 gradients each, and the prediction on what they found; a diagnosis'
  # 341 gradients of PGD, 101 of APGD, 1,001 queries and 110 draws of noise.
  assert {name: (work.units, work.cost) for name, work in works.items()} == {
      'm, clean': (100, 7.), 'm, fmn': (100, 201 * 7.),
      'm, ddn': (100, 201 * 7.),
      'm, diagnose': (64 * (682 + 202 + 1001 + 110), 7.)}
  # Closest images are looked for where the model is right.
  left = workload.after('m', protocol, {'clean': {'average': 0.75}}, 100, 10)
  assert left == {'m, clean': 0, 'm, fmn': 75, 'm, ddn': 75}


def test_a_network_that_cannot_be_traced_costs_something():
  assert workload.operations(None, {}, (8, 8, 1)) == 1.
