"""What a model hub wants: a header that it reads, and the upload itself.

The header is YAML before a model card, as huggingface.co/docs/hub/model-cards
and huggingface/huggingface_hub (`ModelCardData`, `model-index`) have it.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import importlib
import json
import os
import pathlib
from typing import Any

from ferd_jax.core import errors

LIBRARY = 'ferd_jax'
_CLIENT = 'huggingface_hub'
LICENCE = 'apache-2.0'  # of this package, of which an export is made
_TAGS = ('adversarial-robustness', 'robustness-fairness',
         'knowledge-distillation', 'jax', 'flax', 'pytorch')
# The hub's names of data sets, where it has them.
_DATASETS = {'cifar10': 'uoft-cs/cifar10', 'cifar100': 'uoft-cs/cifar100',
             'fashion_mnist': 'zalando-datasets/fashion_mnist',
             'tiny_imagenet': 'zh-plus/tiny-imagenet'}


def header(card: Mapping[str, Any]) -> str:
  """Returns the lines before a model card: licence, tags, data set, metrics.

  Args:
    card: as `export.model_card` returns it.
  """
  results = card['results']
  dataset, split = results['dataset'], results['split']
  known = _DATASETS.get(dataset)
  trained = card['training_data'] is not None
  lines = [
      '---', f'license: {LICENCE}', f'library_name: {LIBRARY}',
      'pipeline_tag: image-classification', 'tags:',
      *(f'- {tag}' for tag in _TAGS),
      f'- {"adversarial-training" if trained else "data-free"}']
  if trained and known is not None:  # The hub's field is of training.
    lines += ['datasets:', f'- {known}']
  lines += [
      'metrics:', '- accuracy', 'model-index:',
      f'- name: {_text(results["config"])}', '  results:', '  - task:',
      '      type: image-classification',
      '    dataset:', f'      name: {_text(dataset)}',
      f'      type: {_text(known or dataset)}',
      *([] if split is None else [f'      split: {_text(split)}']),
      '    metrics:', *_metrics(results), '---', '']
  return '\n'.join(lines)


def _metrics(results) -> Iterator[str]:
  """Yields the entries of the student's accuracies."""
  radius = f'{results.get("norm", "Linf")} eps {results["eps"]:.5g}'
  for attack, found in results['models']['student'].items():
    number = found.get('num_examples', results['num_examples'])
    where = '' if attack == 'clean' else f' at {radius}'
    first = ('' if number >= results['num_examples'] else
             f' (first {number} images)')
    for measure, title in (('average', 'accuracy'),
                           ('worst', 'accuracy of the worst class')):
      yield '    - type: accuracy'
      yield f'      name: {_text(f"{attack} {title}{where}{first}")}'
      yield f'      value: {100 * found[measure]:.2f}'


def _text(value):
  """Returns a text in quotes, which YAML reads as JSON does."""
  return json.dumps(str(value), ensure_ascii=False)


def push(directory: str | os.PathLike[str], repository: str, *,
         private: bool = False,
         files: Mapping[str, str | os.PathLike[str]] | None = None) -> str:
  """Uploads an exported model to the Hugging Face hub.

  Args:
    directory: what a run exported.
    repository: 'user/name'; made if it is not there.
    private: whether it is seen by its owner alone, if it is made.
    files: further files by their name in the repository.

  Returns:
    Where it is now.

  Raises:
    ValueError: if the hub's client is not installed, or the hub refuses.
    FileNotFoundError: if the directory holds no export.
  """
  place = pathlib.Path(directory)
  if not (place / 'README.md').exists():
    raise FileNotFoundError(
        f'Expected {place} to be what a run exported: there is no README.md.')
  api = client().HfApi()
  try:
    api.create_repo(repository, private=private, exist_ok=True)
    address = api.upload_folder(repo_id=repository, folder_path=str(place),
                                commit_message='An export of ferd_jax')
    for name, file in (files or {}).items():
      api.upload_file(repo_id=repository, path_or_fileobj=str(file),
                      path_in_repo=name, commit_message=f'{name} of ferd_jax')
  except Exception as error:  # Of the network, or of the client's own kinds.
    raise ValueError(f'Cannot push to {repository}: {errors.reason(error)}'
                     ) from error
  return str(address)


def fetch(repository: str) -> pathlib.Path:
  """Returns a copy of a model on the hub, on this machine.

  Args:
    repository: 'user/name'.

  Raises:
    ValueError: if the hub's client is not installed, or there is no such model.
  """
  download = client().snapshot_download
  try:
    return pathlib.Path(download(repository))
  except Exception as error:  # As above.
    raise ValueError(f'Cannot get {repository} from the hub: '
                     f'{errors.reason(error)}') from error


def client() -> Any:
  """Returns the hub's client.

  Raises:
    ValueError: if it is not installed.
  """
  try:
    return importlib.import_module(_CLIENT)
  except ImportError as error:
    raise ValueError(f'{_CLIENT} missing: the hub\'s client does this; pip '
                     f'install {_CLIENT}.') from error
