"""What a run leaves for others: its networks' weights and a model card.

  export/student.pt           a state dict, `torch.load(weights_only=True)`
  export/student.safetensors  the same
  export/student.npz          the same for this package, see `native`
  export/generator.*          the last epoch's generator in all three
  export/model_card.json      what it is, from which teacher, and how good
  export/model_card.md        the same to read
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
import numpy as np

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.core import atomic
from ferd_jax.evaluation import tables
from ferd_jax.run import experiment
from ferd_jax.weights import native

_DIRECTORY = 'export'
_UNSAID = ('activation', 'padding', 'shortcut', 'shortcut_input')
GENERATOR = 'generator.npz'  # in the work directory, of the last epoch


def write(run: experiment.Experiment, student: Any, results: Mapping,
          workdir: epath.PathLike) -> epath.Path:
  """Writes the student and its model card, and returns their directory.

  Args:
    run: the experiment.
    student: variables of the student.
    results: as in `results.json`.
    workdir: the directory is made in it.
  """
  directory = epath.Path(workdir) / _DIRECTORY
  _write(directory, 'student', student_network(run), student)
  generator = epath.Path(workdir) / GENERATOR
  if generator.exists():  # It was saved by the last epoch.
    _write(directory, 'generator', *native.read(generator))
  card = model_card(run, results)
  atomic.write_text(directory / 'model_card.json',
                    json.dumps(card, indent=2, allow_nan=False) + '\n')
  atomic.write_text(directory / 'model_card.md', card_text(card))
  return directory


def student_network(run: experiment.Experiment) -> native.Network:
  """Returns what the student of a run is."""
  settings = {name: value for name, value in run.config.student.items()
              if name != 'arch' and value is not None}
  return native.Network(run.config.student.arch, run.image_shape[-1],
                        run.num_classes, settings)


def save_generator(run: experiment.Experiment, variables: Any,
                   workdir: epath.PathLike) -> None:
  """Keeps an epoch's generator for the end of the run.

  Args:
    run: the experiment.
    variables: {'params': ..., 'batch_stats': ...} of the generator.
    workdir: of the run.
  """
  generator = run.synthesis.generator
  native.write(epath.Path(workdir) / GENERATOR, native.Network(
      models.GENERATOR, generator.channels, None,
      {'side': generator.side, 'width': generator.width,
       'nz': run.synthesis.nz}), variables)


def _write(directory, name, network, variables):
  """Writes a network in all formats."""
  native.write(directory / f'{name}.npz', network, variables)
  state_dict = torch_io.state_dict_from_variables(
      network.build(), jax.tree.map(np.asarray, variables))
  for suffix in ('pt', 'safetensors'):
    torch_io.write_state_dict(directory / f'{name}.{suffix}', state_dict)


def model_card(run: experiment.Experiment, results: Mapping) -> dict[str, Any]:
  """Returns the model card as it is in its JSON file.

  Args:
    run: the experiment.
    results: as in `results.json`.
  """
  model, identity = run.synthesis.student, dict(run.identity)
  network = student_network(run).json_values()
  # Defaults too, as no key of the weights tells them.
  unsaid = {name: getattr(model, name) for name in _UNSAID
            if hasattr(model, name)}
  return {
      'student': {'arch': network['arch']} | network['options'] | unsaid | {
          'num_classes': run.num_classes, 'image_shape': list(run.image_shape),
          'definition': torch_io.definition(model)},
      'teacher': identity['teacher'] | identity['teacher_network'] | {
          'digest': identity['teacher_digest']},
      'method': 'FERD (arXiv:2509.20793), trained without data, by ferd_jax',
      'seed': results['seed'], 'norm': results['norm'], 'eps': results['eps'],
      'epoch': results['epoch'], 'config': identity, 'results': dict(results)}


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
  file = (teacher['path'].replace('\\', '/').split('/')[-1]
          or f'RobustBench {teacher["robustbench"]}')
  return f"""# {results['config']}: {student['arch']}

A student of {card['method']}.

* Network: {student['arch']}{f' ({options})' if options else ''}, \
{student['num_classes']} classes. Its keys are those of
  {student['definition']}.
* Input: [N, {channels}, {height}, {width}] images {pixels}.
* Teacher: {teacher['arch']}, {file}, sha256 of its weights \
{teacher['digest'][:16]}.
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
