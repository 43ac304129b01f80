"""The generator phase: latents to images that teach, and what stays of them.

`SYNTHESES` and `SAMPLERS` are the parts by the name that
`config.synthesis.name` and `config.sampler.name` choose; `register` adds
others.
"""

from ferd_jax.core import parts
from ferd_jax.synthesis import ferd
from ferd_jax.synthesis import real
from ferd_jax.synthesis import samplers

SYNTHESES = parts.Registry('synthesis', ferd=ferd.Ferd, real=real.Real)
SAMPLERS = parts.Registry(
    'sampler', margin_softmax=samplers.MarginSoftmax,
    margin_minmax=samplers.MarginMinMax, uniform=samplers.Uniform,
    teacher_ce=samplers.TeacherCrossEntropy,
    student_margin_softmax=samplers.StudentMarginSoftmax)
