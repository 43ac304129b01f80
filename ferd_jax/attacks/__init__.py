"""Attacks for any model: functions of (logits_fn, key, x, y).

An attack's settings are fixed first; the attack is then a pure function that
runs under `jit`, `vmap`, `pmap` and `shard_map`:

  attack = attacks.PGD(eps=8 / 255, step_size=2 / 255, num_steps=20)
  x_adv = jax.jit(attack, static_argnums=0)(logits_fn, key, x, y)

`logits_fn` maps images `[B, ..., channels]` to logits `[B, K]`: a pure
function in evaluation mode, with normalisation inside, so that eps and step
sizes are in the unit of the images. Nothing here knows a model, a framework
or a config.
"""

from ferd_jax.attacks.apgd import APGD
from ferd_jax.attacks.ascent import ascend
from ferd_jax.attacks.attack import Attack
from ferd_jax.attacks.attack import Problem
from ferd_jax.attacks.autoattack import AutoAttack
from ferd_jax.attacks.compiled import jit
from ferd_jax.attacks.ddn import DDN
from ferd_jax.attacks.diagnosis import Diagnosis
from ferd_jax.attacks.diagnosis import diagnose
from ferd_jax.attacks.ensemble import Result
from ferd_jax.attacks.fab import FAB
from ferd_jax.attacks.fmn import FMN
from ferd_jax.attacks.minimum_norm import Distances
from ferd_jax.attacks.minimum_norm import MinimumNorm
from ferd_jax.attacks.pgd import PGD
from ferd_jax.attacks.presets import PRESETS
from ferd_jax.attacks.presets import preset
from ferd_jax.attacks.randomised import Randomised
from ferd_jax.attacks.randomised import RandomisedResult
from ferd_jax.attacks.results import AttackResult
from ferd_jax.attacks.results import History
from ferd_jax.attacks.square import Square
from ferd_jax.attacks.utae import UTAE
from ferd_jax.core.collectives import example_keys

__all__ = ['APGD', 'DDN', 'FAB', 'FMN', 'PGD', 'PRESETS', 'UTAE', 'Attack',
           'AttackResult', 'AutoAttack', 'Diagnosis', 'Distances', 'History',
           'MinimumNorm', 'Problem', 'Randomised', 'RandomisedResult', 'Result',
           'Square', 'ascend', 'diagnose', 'example_keys', 'jit', 'preset']
