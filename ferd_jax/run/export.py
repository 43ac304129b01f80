"""What a run leaves for others: its networks' weights and a model card.

  export/README.md            what it is, from which teacher, and how good, with
                              the header that a model hub reads
  export/model_card.json      the same for programs
  export/config.json          what it takes to build the network
  export/student.pt           a state dict, `torch.load(weights_only=True)`
  export/student.safetensors  the same
  export/student.npz          the same for JAX, see `native`
  export/student_torch.py     builds and loads it, with PyTorch alone
  export/student_jax.py       the same with JAX alone
  export/generator.*          that epoch's generator, as the student's weights
"""

from collections.abc import Mapping
import contextlib
from importlib import resources
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
from ferd_jax.run import hub
from ferd_jax.run import settings
from ferd_jax.run import state as states
from ferd_jax.weights import native

DIRECTORY = 'export'
# Of this package, what is copied beside the weights.
_LOADERS = {'student_torch.py': 'torch_networks.py',
            'student_jax.py': 'jax_networks.py'}
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
  directory, missing = epath.Path(workdir) / DIRECTORY, []
  missing += _write(directory, 'student', experiment.student,
                    experiment.student_network, state.student.reported)
  generator = experiment.method.synthesis.generator(state.synthesis)
  if generator is not None:
    missing += _write(directory, 'generator', *generator)
  card, config = model_card(experiment, results), _config(experiment, results)
  for name, values in (('model_card.json', card), ('config.json', config)):
    atomic.write_text(directory / name,
                      json.dumps(values, indent=2, allow_nan=False) + '\n')
  loaders = [name for name in _LOADERS if 'module' in config]
  for name in loaders:
    source = resources.files('ferd_jax').joinpath(_LOADERS[name])
    atomic.write_text(directory / name, source.read_text())
  if not loaders:
    missing.append(f'{" and ".join(_LOADERS)} were not written: they build '
                   f'the built-in networks, not '
                   f'{type(experiment.student).__name__}.')
  atomic.write_text(directory / 'README.md', readme(card, bool(loaders)))
  return directory, missing


def _config(experiment, results):
  """Returns what it takes to build the student, JSON values."""
  model, method = experiment.student, experiment.method
  config = {'library_name': hub.LIBRARY,
            'image_shape': list(method.image_shape),
            'class_names': results['class_names']}
  if experiment.student_network is not None:
    config['network'] = experiment.student_network.json_values()
  with contextlib.suppress(ValueError):  # One from outside of this package.
    config['module'] = torch_io.torch_module(model, method.image_shape[-1])
  return config


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


def readme(card: Mapping, loaders: bool = True) -> str:
  """Returns a model card as Markdown, with the header that a hub reads.

  Args:
    card: as `model_card` returns it.
    loaders: whether `student_torch.py` and `student_jax.py` are beside it.
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
    if loaders:
      pixels += ', as the files below do themselves'
  return f"""{hub.header(card)}
# {results['config']}: {student['arch']}

A student of {card['method']}. {_data(card)}

* Network: {student['arch']}{f' ({options})' if options else ''}, \
{student['num_classes']} classes. Its keys are those of
  {student['definition']}.
* Input: [N, {channels}, {height}, {width}] images {pixels}.
* Teacher: {_teacher(teacher)}.
* Made for {card['norm']} attacks of radius {card['eps']:.5g}; seed \
{card['seed']}, epoch {card['epoch']} of {results['num_epochs']}.
* All settings and numbers: model_card.json. Teacher and data set have licences
  of their own.

{_USAGE if loaders else _OWN_USAGE}
## Results

{tables.text(results)}
"""


_USAGE = """With PyTorch alone, in this directory:

```python
from student_torch import load
logits = load()(images)  # [N, C, H, W] in [0, 1]
```

With JAX alone, as a function that attacks and gradients take:

```python
from student_jax import load
logits = load()(images)  # [N, H, W, C] in [0, 1]
```

As a Flax module with its variables:

```python
import ferd_jax
module, variables, apply = ferd_jax.load_model('.')
logits = apply(variables, images)  # [N, H, W, C] in [0, 1]
```
"""
_OWN_USAGE = """```python
import torch
net = ...  # The module that is named above.
state_dict = torch.load('student.pt', weights_only=True)
net.load_state_dict(state_dict, strict=True)
```
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
