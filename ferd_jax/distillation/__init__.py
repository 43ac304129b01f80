"""The student phase: images, attacks on them, the student's step.

`INNERS` and `OUTERS` are the inner attacks and outer losses by the name that
`config.inner.name` and `config.outer.name` choose; `register` adds others.
"""

from ferd_jax.core import parts
from ferd_jax.distillation import adversarial_training
from ferd_jax.distillation import inner
from ferd_jax.distillation import outer

INNERS = parts.Registry(
    'inner', utae=inner.UniformTarget,
    ce=adversarial_training.CrossEntropyAttack,
    trades=adversarial_training.TradesAttack)
OUTERS = parts.Registry(
    'outer', decoupled_kl=outer.DecoupledKL,
    cross_entropy=adversarial_training.CrossEntropy,
    trades=adversarial_training.Trades)
