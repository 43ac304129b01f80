"""The student phase: images, attacks on them, the student's step.

`INNERS` and `OUTERS` are the inner attacks and outer losses by the name that
`config.inner.name` and `config.outer.name` choose; `register` adds others.
"""

from ferd_jax.core import parts
from ferd_jax.distillation import absld
from ferd_jax.distillation import divergences
from ferd_jax.distillation import fair
from ferd_jax.distillation import inner
from ferd_jax.distillation import mtard
from ferd_jax.distillation import outer
from ferd_jax.distillation import similar_target

INNERS = parts.Registry(
    'inner', utae=inner.UniformTarget, ce=inner.CrossEntropy,
    rslad=inner.RSLAD, trades=inner.Trades, adaad=inner.AdaAD,
    saad=inner.LinearTeacher, hee=inner.HighEntropy,
    similar_target=similar_target.SimilarTarget)
OUTERS = parts.Registry(
    'outer', decoupled_kl=outer.DecoupledKL, ikl=outer.IKL, gkl=outer.GKL,
    soft_ce=divergences.SoftCrossEntropy, ard=divergences.ARD,
    rslad=divergences.RSLAD, iad=divergences.IAD, iad2=divergences.IAD2,
    adaad=divergences.AdaAD, adaiad=divergences.AdaIAD, mtard=mtard.MTARD,
    absld=absld.ABSLD, saad=divergences.SAAD, trades=divergences.Trades,
    cross_entropy=divergences.CrossEntropy)
for _name in ('decoupled_kl', 'ard', 'iad', 'rslad', 'mtard'):
  OUTERS.register(f'fair_{_name}', fair.fair(OUTERS.find(_name)))
