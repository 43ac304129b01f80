"""Tests of ferd_jax.distillation.student_epochs: milestones of the student."""

import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.distillation import student_epochs

MILESTONES = (215 / 300, 260 / 300, 285 / 300)


@pytest.mark.parametrize('milestones', [MILESTONES, (215, 260, 285)])
def test_rate_of_the_originals(milestones):
  epochs = student_epochs.StudentEpochs(num_epochs=320, warmup_epochs=20)
  for completed, rate in ((0, 0.1), (20, 0.1), (234, 0.1), (235, 0.01),
                          (279, 0.01), (280, 1e-3), (304, 1e-3), (305, 1e-4),
                          (320, 1e-4)):
    found = epochs.decayed(0.1, milestones, jnp.asarray(completed))
    np.testing.assert_allclose(found, rate, rtol=1e-5, err_msg=str(completed))


def test_shares_are_of_the_students_epochs():
  epochs = student_epochs.StudentEpochs(num_epochs=12, warmup_epochs=2)
  found = [bool(epochs.reached(0.3, jnp.asarray(completed)))
           for completed in range(12)]
  assert found == [False] * 5 + [True] * 7
  assert epochs.reached(0., jnp.asarray(2))
  assert not epochs.reached(1., jnp.asarray(11))
  assert epochs.reached(1., jnp.asarray(12))


def test_no_milestones():
  epochs = student_epochs.StudentEpochs(num_epochs=3, warmup_epochs=0)
  np.testing.assert_allclose(epochs.decayed(0.1, (), jnp.asarray(3)), 0.1)


@pytest.mark.parametrize('milestones', [(0.5, -1.), -0.1, (0.5, 'late')])
def test_invalid_milestones(milestones):
  with pytest.raises(ValueError, match='milestones='):
    student_epochs.check_milestones(milestones=milestones)
