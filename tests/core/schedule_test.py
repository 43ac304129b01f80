"""When all will be over, by a clock of the test's own."""

import clocks
import pytest

from ferd_jax.core import schedule


@pytest.fixture
def clock():
  return clocks.Clock()


def _plan(clock, **works):
  plan = schedule.Schedule(clock)
  plan.expect({name: schedule.Work(*values) for name, values in works.items()})
  return plan


def _work(plan, clock, name, count, seconds, first=0.):
  """Counts units, each of which takes so long, the first longer."""
  plan.start(name)
  for i in range(count):
    clock.now += seconds + (first if not i else 0)
    plan.advance(name)


def test_nothing_is_known_before_something_was_measured(clock):
  plan = _plan(clock, step=(10, 1.))
  assert plan.left() is None and plan.share() is None


def test_first_unit_compiles(clock):
  plan = _plan(clock, step=(10, 1.))
  _work(plan, clock, 'step', 4, 2., first=30.)
  assert plan.left() == pytest.approx(12)
  assert plan.share() == pytest.approx(38 / 50)


def test_phases_cost_differently(clock):
  plan = _plan(clock, generator=(100, 0.), student=(100, 0.))
  _work(plan, clock, 'generator', 10, 1.)
  _work(plan, clock, 'student', 10, 5.)
  assert plan.left() == pytest.approx(90 + 450)


def test_what_was_not_begun_is_judged_by_its_operations(clock):
  # 3 operations a second, and its first unit compiles like that of the others.
  plan = _plan(clock, known=(5, 6., 'a'), other=(7, 30., 'a'))
  _work(plan, clock, 'known', 5, 2., first=11.)
  assert plan.left() == pytest.approx(7 * 10 + 11)


def test_first_units_of_a_kind_compile_alike(clock):
  # An attack's program is no training step's.
  plan = _plan(clock, step=(9, 6., 'a', None, 'training'),
               later=(4, 6., 'a', None, 'training'),
               clean=(2, 6., 'a', None, 'evaluation'),
               pgd=(3, 6., 'a', None, 'evaluation'))
  _work(plan, clock, 'step', 9, 2., first=30.)
  assert plan.left() == pytest.approx(9 * 2 + 30 + 3 + 3)
  _work(plan, clock, 'clean', 2, 2., first=1.)
  assert plan.left() == pytest.approx(7 * 2 + 30 + 1)


def test_speed_of_the_same_network_counts_first(clock):
  plan = _plan(clock, fast=(5, 6., 'a'), slow=(5, 6., 'b'), more=(2, 6., 'b'))
  _work(plan, clock, 'fast', 5, 1.)
  _work(plan, clock, 'slow', 5, 10.)
  assert plan.left() == pytest.approx(20)


def test_only_a_first_unit_is_better_than_nothing(clock):
  plan = _plan(clock, once=(1, 6.), other=(2, 12.))
  _work(plan, clock, 'once', 1, 3.)
  assert plan.left() == pytest.approx(12)


def test_speed_of_an_earlier_session(clock):
  plan = _plan(clock, step=(10, 0., '', 2.), other=(1, 1.))
  _work(plan, clock, 'other', 1, 1.)
  assert plan.left() == pytest.approx(20)


def test_time_between_is_that_of_what_has_no_task(clock):
  plan = _plan(clock, step=(4, 0.), epoch=(3, 0.))
  for _ in range(2):
    _work(plan, clock, 'step', 2, 1.)
    clock.now += 2
    plan.start('curve')  # Nobody's: it counts to the epoch.
    clock.now += 3
    plan.advance('epoch')
  assert plan.left() == pytest.approx(5)  # One epoch, no step.


def test_more_or_less_is_left_than_was_expected(clock):
  plan = _plan(clock, attack=(100, 2.))
  _work(plan, clock, 'attack', 10, 1.)
  plan.remains({'attack': 5, 'unknown': 3})
  # An operation for each unit that nobody expected: half a second.
  assert plan.left() == pytest.approx(5 + 1.5)
  plan.remains({'attack': 0, 'unknown': 0})
  assert plan.left() == 0 and plan.share() == 1


def test_it_falls_while_a_unit_goes_on(clock):
  plan = _plan(clock, step=(10, 1.), other=(2, 1.))
  _work(plan, clock, 'step', 5, 4.)
  clock.now += 3
  assert plan.left() == pytest.approx(20 + 8 - 3)
  clock.now += 1000  # But never below what else there is.
  assert plan.left() == pytest.approx(8)


def test_a_machine_that_becomes_slower(clock):
  plan = _plan(clock, step=(100, 1.))
  _work(plan, clock, 'step', 20, 10.)
  _work(plan, clock, 'step', 70, 100.)
  assert plan.left() == pytest.approx(10 * 100, rel=0.05)


def test_share_counts_earlier_sessions(clock):
  plan = _plan(clock, step=(4, 1.))
  _work(plan, clock, 'step', 2, 10.)
  assert plan.share(spent=60.) == pytest.approx(80 / 100)
