"""How much an evaluation has to do, counted before it begins.

By these counts the time left is estimated: passes of images through networks,
and the operations of a pass. How many images an AutoAttack has to go on with
depends on how many are robust; what is known of that is said as it is found.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from ferd_jax import attacks
from ferd_jax.attacks import diagnosis
from ferd_jax.core import reporting
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import target_analysis
from ferd_jax.models import passes

_ROBUST = 0.6  # Share of images, before anything is known.
# Share of its steps that an attack needs for an image which it fools.
_FOOLED = 0.2


def operations(model: nn.Module, variables: Any,
               image_shape: tuple[int, ...]) -> float:
  """Returns the operations of a forward pass of an image, 1 if unknown.

  Args:
    model: any module.
    variables: of it.
    image_shape: (H, W, C).
  """
  try:
    return passes.operations(model, variables, image_shape)
  except Exception:  # Anybody's code; an estimate is not worth a run.
    return 1.


def of_model(name: str, cost: float, protocol: Any, num_images: int,
             num_classes: int) -> dict[str, reporting.Work]:
  """Returns what is to be done with a model, by the names of the tasks.

  Args:
    name: of the model.
    cost: operations of a forward pass of an image.
    protocol: see `results.Protocol`.
    num_images: that there are.
    num_classes: K.
  """
  works = {}
  def add(task, units, passes_each):
    works[f'{name}, {task}'] = reporting.Work(
        units, passes_each * cost, name, program='evaluation')
  for attack in protocol.attacks:
    if attack in robustness.AUTOATTACKS:
      for member, units in autoattack(attack, protocol, num_images,
                                      num_classes).items():
        add(f'{attack}, {member}', units, 1)
    else:
      add(attack, num_images, 1 + (
          0 if attack == robustness.CLEAN else
          attacks.preset(attack, protocol.eps, protocol.norm).forward_passes))
  number = (num_images if protocol.target_examples is None else
            min(protocol.target_examples, num_images))
  if number:
    add('targets', number * (num_classes - 1), 2 +
        target_analysis.targeted_pgd20(
            protocol.eps, protocol.norm).forward_passes)
  if protocol.curve_radii:
    for member, attack in protocol.minimum_norm.members(num_classes).items():
      add(member, num_images, 1 + attack.forward_passes)
  if protocol.diagnosed_examples:
    add('diagnose', min(protocol.diagnosed_examples, num_images)
        * diagnosis.forward_passes(protocol.norm), 1)
  return works


def autoattack(name: str, protocol: Any, num_images: int, num_classes: int,
               robust: float | None = None) -> dict[str, float]:
  """Returns the forward passes that the attacks of an AutoAttack need.

  Args:
    name: of `robustness.AUTOATTACKS`.
    protocol: see `results.Protocol`.
    num_images: that there are.
    num_classes: K.
    robust: share of the images that are; None if it is not known.
  """
  number = protocol.autoattack_examples or num_images
  share = _ROBUST if robust is None else robust
  found, left = {}, share + (1 - share) * _FOOLED
  for member, attack in attacks.AutoAttack(
      protocol.eps, protocol.norm, robustness.AUTOATTACKS[name]).members(
          num_classes).items():
    found[member] = min(number, num_images) * left * attack.forward_passes
    left = share  # Those that fool have been fooled.
  return found


def after(name: str, protocol: Any, found: Mapping[str, Mapping],
          num_images: int, num_classes: int) -> dict[str, float]:
  """Returns what is left of a model's attacks once some are done, by task.

  Args:
    name: of the model.
    protocol: see `results.Protocol`.
    found: summaries of the attacks that are done.
    num_images: that there are.
    num_classes: K.
  """
  left = {}
  robust = min(summary['average'] for summary in found.values())
  for attack in protocol.attacks:
    done = attack in found
    if attack in robustness.AUTOATTACKS:
      for member, units in autoattack(attack, protocol, num_images,
                                      num_classes, robust).items():
        left[f'{name}, {attack}, {member}'] = 0 if done else units
    elif done:
      left[f'{name}, {attack}'] = 0
  if protocol.curve_radii and robustness.CLEAN in found:
    # Its attacks get the images that are classified right.
    right = found[robustness.CLEAN]['average'] * num_images
    for member in protocol.minimum_norm.names:
      left[f'{name}, {member}'] = right
  return left
