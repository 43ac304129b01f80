"""A record is what was written, or damaged."""

import json

import pytest

from ferd_jax.run import record as records

_RECORD = records.Record(
    epoch=2, state='a', structure={'x': 'float32 [3]'}, pool=['b', 'c'],
    metrics=['{"epoch": 1, "loss": 0.1}'], identity={'seed': 0, 'eps': 0.1})


def _stored(record=_RECORD):
  return json.loads(json.dumps(record.json_values()))


def test_reads_what_was_written():
  assert records.read(_stored()) == _RECORD


@pytest.mark.parametrize('nothing', [None, {}])
def test_of_a_version_that_kept_none(nothing):
  assert records.read(nothing) is None


@pytest.mark.parametrize('change', [
    lambda values: values['record'].update(epoch=3),
    lambda values: values['record']['pool'].reverse(),
    lambda values: values['record']['identity'].update(seed=1),
    lambda values: values['record'].pop('state'),
    lambda values: values['record'].update(more=1),
    lambda values: values.update(digest='0'),
    lambda values: values.pop('digest'), lambda values: values.pop('record'),
    lambda values: values.update(record=[])])
def test_any_change_is_damage(change):
  values = _stored()
  change(values)
  with pytest.raises(records.Damaged, match='not what was written'):
    records.read(values)
