"""What a run leaves for others: its networks' weights and a model card.

  export/student.pt           a state dict, `torch.load(weights_only=True)`
  export/student.safetensors  the same
  export/student.npz          the same for this package, see `native`
  export/generator.*          that epoch's generator in all three
  export/model_card.json      what it is, from which teacher, and how good
  export/model_card.md        the same to read
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
import numpy as np

from ferd_jax import torch_io
from ferd_jax.core import atomic
from ferd_jax.evaluation import per_image
from ferd_jax.evaluation import tables
from ferd_jax.models import frozen as frozens
from ferd_jax.run import experiment as experiments
from ferd_jax.run import settings
from ferd_jax.run import state as states
from ferd_jax.weights import native

_DIRECTORY = 'export'
_UNSAID = ('activation', 'padding', 'shortcut', 'shortcut_input')


def write(experiment: experiments.Experiment, state: states.TrainState,
          results: Mapping, workdir: epath.PathLike
          ) -> tuple[epath.Path, list[str]]:
  """Writes the student, the generator and the model card.

  Args:
    experiment: of the run.
    state: of the epoch that is exported.
    results: as in `results.json`.
    workdir: the directory is made in it.

  Returns:
    The directory, and sentences on what could not be written.
  """
  directory, missing = epath.Path(workdir) / _DIRECTORY, []
  missing += _write(directory, 'student', experiment.student,
                    experiment.student_network, state.student.reported)
  generator = experiment.method.synthesis.generator(state.synthesis)
  if generator is not None:
    missing += _write(directory, 'generator', *generator)
  card = model_card(experiment, results)
  atomic.write_text(directory / 'model_card.json',
                    json.dumps(card, indent=2, allow_nan=False) + '\n')
  atomic.write_text(directory / 'model_card.md', card_text(card))
  return directory, missing


def _write(directory, name, model, network, variables):
  """Writes a network in all formats; returns what could not be written."""
  missing, variables = [], jax.tree.map(np.asarray, variables)
  if network is None:
    missing.append(
        f'{name}.npz was not written: {type(model).__name__} has no name to '
        'build it by again; models.register gives it one.')
  else:
    native.write(directory / f'{name}.npz', network, variables)
  try:
    state_dict = torch_io.state_dict_from_variables(model, variables)
  except ValueError as error:
    missing.append(f'{name}.pt and {name}.safetensors were not written: '
                   f'{error}')
    return missing
  for suffix in ('pt', 'safetensors'):
    torch_io.write_state_dict(directory / f'{name}.{suffix}', state_dict)
  return missing


def model_card(experiment: experiments.Experiment,
               results: Mapping) -> dict[str, Any]:
  """Returns the model card as it is in its JSON file.

  Args:
    experiment: of the run.
    results: as in `results.json`.
  """
  model, identity = experiment.student, dict(experiment.identity)
  method = experiment.method
  network = experiment.student_network
  described = ({'arch': type(model).__name__, 'options': {}}
               if network is None else network.json_values())
  # Defaults too, as no key of the weights tells them.
  unsaid = {name: getattr(model, name) for name in _UNSAID
            if hasattr(model, name)}
  teacher = None
  if experiment.teacher is not None:
    teacher = {
        **identity['teacher'], **identity['teacher_networks'][frozens.ROBUST],
        'digest': identity['teacher_digests'][frozens.ROBUST]}
  return {
      'student': {'arch': described['arch']} | described['options'] | unsaid | {
          'num_classes': method.num_classes,
          'image_shape': list(method.image_shape),
          'definition': torch_io.definition(model)},
      'teacher': teacher,
      'training_data': results.get('training_data'),
      'method': _method(experiment.config),
      'seed': results['seed'], 'norm': results['norm'], 'eps': results['eps'],
      'epoch': results['epoch'], 'config': identity,
      'results': per_image.without(results)}


def _method(config):
  """Returns the parts of the method by name."""
  parts = ' x '.join(config[group].name for group in settings.REGISTRIES)
  return f'{parts}, by ferd_jax'


def card_text(card: Mapping) -> str:
  """Returns a model card as Markdown.

  Args:
    card: as `model_card` returns it.
  """
  student, teacher, results = (
      card[name] for name in ('student', 'teacher', 'results'))
  options = ', '.join(f'{name} {value}' for name, value in student.items()
                      if name not in ('arch', 'definition', 'mean', 'std',
                                      'num_classes', 'image_shape'))
  height, width, channels = student['image_shape']
  if student.get('mean') is None:
    pixels = 'in [0, 1], not normalised'
  else:
    pixels = (f'in [0, 1], from which the mean {student["mean"]} is to be '
              f'subtracted and which are divided by {student["std"]} before '
              'the network')
  return f"""# {results['config']}: {student['arch']}

A student of {card['method']}. {_data(card)}

* Network: {student['arch']}{f' ({options})' if options else ''}, \
{student['num_classes']} classes. Its keys are those of
  {student['definition']}.
* Input: [N, {channels}, {height}, {width}] images {pixels}.
* Teacher: {_teacher(teacher)}.
* Made for {card['norm']} attacks of radius {card['eps']:.5g}; seed \
{card['seed']}, epoch {card['epoch']} of {results['num_epochs']}.
* All settings and numbers: model_card.json.

```python
import torch
net = ...  # The module that is named above.
state_dict = torch.load('student.pt', weights_only=True)
net.load_state_dict(state_dict, strict=True)
```

## Results

{tables.text(results)}
"""


def _data(card):
  """Returns whether data were used, and which."""
  if card['training_data'] is None:
    return 'Trained without data.'
  return f'**{tables.not_data_free(card["training_data"])}**'


def _teacher(teacher):
  """Returns what the teacher is and where it is from."""
  if teacher is None:
    return 'none'
  file = (teacher.get('path', '').replace('\\', '/').split('/')[-1]
          or (f'RobustBench {teacher["robustbench"]}'
              if teacher.get('robustbench') else teacher.get('module', '')))
  return (f'{teacher["arch"]}, {file}, sha256 of its weights '
          f'{teacher["digest"][:16]}')
