"""The attacks of the field's robustness tables, by name.

Steps and starts differ between papers; every table printed here names its
preset. All are L-infinity attacks that return the last iterate, without
restarts.
"""

from ferd_jax import losses
from ferd_jax import validate
from ferd_jax.attacks import pgd

PRESETS = ('fgsm', 'pgd20', 'cw20')


def preset(name: str, eps: float) -> pgd.PGD:
  """Returns the attack of that name at radius `eps`.

  At eps = 8/255 they are the usual ones; the step size scales with eps.

  * `fgsm`: one step of eps on the cross-entropy from the image (Goodfellow et
    al., arXiv:1412.6572).
  * `pgd20`: 20 steps of eps/4 on the cross-entropy from a uniform start.
  * `cw20`: the same on the margin max_{j != y} z_j - z_y, the start not
    clipped to the bounds (GitHub NISP-official/Fair-ARD eval.py). It is PGD on
    the Carlini-Wagner loss, not their optimisation over the distance.

  Args:
    name: one of `PRESETS`.
    eps: radius, at least 0, in the unit of the images, which lie in [0, 1].

  Raises:
    ValueError: for an unknown name or a negative eps.
  """
  validate.one_of(PRESETS, attack=name)
  validate.non_negative(eps=eps)
  if name == 'fgsm':
    return pgd.PGD(eps, step_size=eps, num_steps=1, start='zero')
  if name == 'pgd20':
    return pgd.PGD(eps, step_size=eps / 4, num_steps=20)
  return pgd.PGD(eps, step_size=eps / 4, num_steps=20, clip_start=False,
                 loss=losses.carlini_wagner)
