"""The generator phase: latents to images that teach, and what stays of them.

`SYNTHESES` and `SAMPLERS` are the parts by the name that
`config.synthesis.name` and `config.sampler.name` choose; `register` adds
others.
"""

from ferd_jax.core import parts
from ferd_jax.synthesis import cmi
from ferd_jax.synthesis import dafl
from ferd_jax.synthesis import deepinversion
from ferd_jax.synthesis import dfad
from ferd_jax.synthesis import dfhl_rs
from ferd_jax.synthesis import dfq
from ferd_jax.synthesis import fast
from ferd_jax.synthesis import ferd
from ferd_jax.synthesis import nayer
from ferd_jax.synthesis import real
from ferd_jax.synthesis import samplers
from ferd_jax.synthesis import zskt

SYNTHESES = parts.Registry(
    'synthesis', ferd=ferd.Ferd, dafl=dafl.Dafl, zskt=zskt.Zskt,
    dfad=dfad.Dfad, dfq=dfq.Dfq, deepinversion=deepinversion.DeepInversion,
    cmi=cmi.Cmi, fast=fast.Fast, dfhl_rs=dfhl_rs.DfhlRs, nayer=nayer.Nayer,
    real=real.Real)
SAMPLERS = parts.Registry(
    'sampler', margin_softmax=samplers.MarginSoftmax,
    margin_minmax=samplers.MarginMinMax, uniform=samplers.Uniform,
    teacher_ce=samplers.TeacherCrossEntropy,
    student_margin_softmax=samplers.StudentMarginSoftmax)
