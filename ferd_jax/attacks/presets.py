"""The attacks of the field's robustness tables, by name.

Steps and starts differ between papers; every table printed here names its
preset. All return the last iterate, without restarts. Those on the margin are
PGD on the Carlini-Wagner loss, not their optimisation over the distance.
"""

import typing
from typing import Any
from typing import Literal

from ferd_jax import losses
from ferd_jax.attacks import geometry
from ferd_jax.attacks import pgd
from ferd_jax.core import validate

_CW = losses.carlini_wagner
Name = Literal['fgsm', 'fgsm_fairard', 'pgd10', 'pgd20', 'pgd20_fairard',
               'pgd20_trades', 'cw20', 'cw30_ciard', 'cw100_dfhl']
PRESETS: tuple[str, ...] = typing.get_args(Name)
# By name: step size over eps, and settings of PGD.
_SETTINGS: dict[Name, tuple[float, dict[str, Any]]] = {
    'fgsm': (1, dict(num_steps=1, start='zero')),
    'fgsm_fairard': (1, dict(num_steps=1, start='normal', clip_start=False)),
    'pgd10': (1 / 4, dict(num_steps=10)),
    'pgd20': (1 / 4, dict(num_steps=20)),
    'pgd20_fairard': (1 / 4, dict(num_steps=20, clip_start=False)),
    'pgd20_trades': (0.003 * 255 / 8, dict(num_steps=20)),
    'cw20': (1 / 4, dict(num_steps=20, loss=_CW, clip_start=False)),
    'cw30_ciard': (1 / 4, dict(num_steps=30, loss=_CW, start='zero',
                               clip_steps=False)),
    'cw100_dfhl': (1 / 4, dict(num_steps=100, loss=_CW, clip_start=False)),
}


def preset(name: Name, eps: float, norm: geometry.Norm = 'Linf',
           bounds: tuple[float, float] = (0., 1.)) -> pgd.PGD:
  """Returns the attack of that name at radius `eps`.

  At eps = 8/255 in L-infinity they are those of the sources named; the step
  size scales with eps.

  * `fgsm`: one step of eps on the cross-entropy from the image (Goodfellow et
    al., arXiv:1412.6572). `fgsm_fairard` starts from Gaussian noise.
  * `pgd20`: 20 steps of eps/4 on the cross-entropy from a uniform start;
    `pgd10`: 10 of them. `pgd20_fairard` does not clip the start to the bounds,
    `pgd20_trades` has steps of 0.003 (TRADES, RSLAD, ABSLD, MTARD).
  * `cw20`: 20 steps of eps/4 on the margin max_{j != y} z_j - z_y, the start
    not clipped to the bounds (GitHub NISP-official/Fair-ARD eval.py, whose
    attack `pgd20_fairard` and `fgsm_fairard` are, too). `cw30_ciard`: 30 steps
    from the image, clipped to the bounds at the end only (eminentgu/CIARD);
    `cw100_dfhl`: 100 steps (LetheSec/DFHL-RS-Attack).

  Args:
    name: one of `PRESETS`.
    eps: radius, at least 0, in the unit of the images.
    norm: 'Linf', as in the tables, or 'L2' or 'L1' with the same steps: in L1
      of 1% of the entries each, see `attacks.PGD`.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for an unknown name or norm, or a negative eps.
  """
  validate.one_of(PRESETS, attack=name)
  validate.non_negative(eps=eps)
  share, settings = _SETTINGS[name]
  return pgd.PGD(eps, step_size=share * eps, norm=norm, bounds=bounds,
                 **settings)
