"""Every command line of README and docs runs, in a small form.

Small are networks, steps and images; options are the command's own. Those that
do not run here are named below with the reason, and a command that is new runs
without being named.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import as_if_trained
from faults import running
import made_runs
import numpy as np
import pages
import pytest
import tiny  # noqa: F401

from ferd_jax import torch_io
from ferd_jax.weights import native

_NOT_HERE = {
    'It installs packages, as .ci/run does.': (
        'pip install -r requirements.txt',
        'pip install -r requirements.txt "jax[cuda13]"',
        'pip install -r requirements.txt "jax[tpu]"',
        'pip install -r requirements-test.txt',
        'pip install -r requirements-test.txt && python -m pytest',
        'pip install --no-deps robustbench==1.1.1',
        'pip install .', 'pip install ".[train]"',
        'pip install ".[train,report]"', 'pip install ".[tensorboard]"',
        'pip install "ferd_jax[train]"',
        'pip install gcsfs google-cloud-storage'),
    '.ci/run does it.': (
        'git clone <this repository> && cd ferd_jax', 'python -m pytest',
        'python -m pytest -n 0 tests/attacks/ascent_test.py', 'ruff check .',
        'mkdocs build'),
    'It is the tests.': (
        'python -m pytest -m slow',),
    'It fetches the weights of a published network.': (
        'python -m ferd_jax.evaluate --robustbench=Rice2020Overfitting '
        '--data=cifar10',
        'python -m ferd_jax.evaluate --robustbench=Rice2020Overfitting '
        '--data=cifar10 --attacks=clean,autoattack --n-examples=1000',
        'python -m ferd_jax.evaluate --robustbench=L2/Rice2020Overfitting '
        '--data=cifar10 --norm=L2 --eps=0.5',
        'python -m ferd_jax.teachers fetch cifar10 Chen2021LTD_WRN34_10',
        'python main.py --config=cifar10 '
        '--config.teacher.robustbench=Rice2020Overfitting',
        'python main.py --config=cifar10 '
        '--config.teacher.robustbench=L2/Rice2020Overfitting'),
    'It needs an account of the hub; tests/report_test.py has a stand-in.': (
        'python -m ferd_jax.report runs/digits --push-to-hub=USER/NAME',),
    'It makes machines of a cloud.': (
        'gcloud compute tpus tpu-vm create $NAME --zone=$ZONE '
        '--accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite',
        'gcloud compute tpus tpu-vm ssh $NAME --zone=$ZONE --command=" git '
        'clone $REPOSITORY ferd_jax && cd ferd_jax && pip install -r '
        'requirements.txt \'jax[tpu]\' && python main.py --config=cifar10 '
        '--config.precision=bfloat16"',
        'gcloud compute tpus tpu-vm ssh $NAME --zone=$ZONE --worker=all '
        '--command=" cd ferd_jax && python main.py --config=cifar10 '
        '--distributed --config.teacher.path=TEACHER.safetensors '
        '--workdir=gs://BUCKET/run"'),
    'It is a job of Slurm.': ('devices.md: #!/bin/bash',),
    'It waits for another process; tests/core/multi_process_test.py has two.': (
        'python main.py --config=cifar10 --coordinator=10.0.0.1:1234 '
        '--num_processes=2 --process_id=0 --workdir=/shared/run',),
    'It needs a GPU; tests/benchmarks_test.py runs its parts.': (
        'python benchmarks/accelerator.py --workdir=runs/accelerator '
        '--minutes=30 --teacher=CIFAR10-resnet20-adv.pth',),
}
_RUN = [command for command in pages.commands()
        if not any(command in those for those in _NOT_HERE.values())]
# Files that commands read, and the networks in them: name, channels, classes,
# options. `tiny` compiles in no time.
_FILES = {
    'CIFAR10-resnet20-adv.pth': ('cifar_resnet20', 3, 10, {}),
    'Rice2020Overfitting.pt': ('preact_resnet18', 3, 10, {'final_bn': False}),
    'tiny_preact_resnet34.pt': ('preact_resnet34', 3, 10, {}),
    'model.pt': ('wrn_10_1', 3, 10, {}),
    'small.pt': ('wrn_10_1', 3, 10, {'width': 4}),
    'teacher.npz': ('tiny', 3, 10, {}),
    'tiny_1_10.npz': ('tiny', 1, 10, {}), 'tiny_3_10.npz': ('tiny', 3, 10, {}),
    'tiny_3_200.npz': ('tiny', 3, 200, {}),
}
# Images: side, channels, classes.
_IMAGES = {'shapes.npz': (32, 3, 10), 'grey.npz': (28, 1, 10),
           'large.npz': (96, 3, 10), 'many_classes.npz': (64, 3, 200)}
_SMALLER = {  # Whether the command has them or not.
    'config.num_epochs': '1', 'config.distill.steps': '1',
    'config.warmup_epochs': '0', 'config.eval.target_examples': '0'}
_WHERE_GIVEN = {'config.synthesis.batch_size': '8'}
_TRAINED = ['--config=digits']  # by main.py, in runs/digits
# Of the others each takes seconds, in which networks are compiled.
_FAST = re.compile(
    r'--help$|teachers list|compare runs/|report .* --format')


def _words(command):
  """Returns the variables, the program and the arguments of a command."""
  words, variables = shlex.split(command), {}
  while '=' in words[0]:
    name, _, variables[name] = words.pop(0).partition('=')
  if words[0] == 'ferd-jax':
    return variables, 'ferd_jax', words[1:]
  assert words[0] == 'python', command
  if words[1] == '-m':
    return variables, words[2], words[3:]
  return variables, words[1], words[2:]


def _small_config(place):
  """Returns --config's value with the variant `smoke`."""
  if 'smoke' in place:
    return place
  return f'{place.removeprefix("configs/").removesuffix(".py")}' + (
      ',' if ':' in place else ':') + 'smoke'


def _small_training(arguments):
  """Returns arguments of main.py for a run of seconds."""
  names = [word.lstrip('-').partition('=')[0] for word in arguments]
  small, config, images = [], '', None
  for word, name in zip(arguments, names, strict=True):
    value = word.partition('=')[2]
    if name == 'config':
      config, value = value, _small_config(value)
    elif name in _SMALLER:
      continue
    elif name in _WHERE_GIVEN:
      value = _WHERE_GIVEN[name]
    elif name == 'config.student.arch' and value.startswith('xcit'):
      value = 'xcit_2_4'
    elif name == 'config.teacher.arch' and value.startswith('wrn'):
      value = 'wrn_10_1'
    elif re.fullmatch(r'config\.teachers?\.(\w+\.)?path', name):
      value, images = _stand_ins(arguments)
    small.append(f'--{name}={value}' if '=' in word else word)
  small += [f'--{name}={value}' for name, value in _SMALLER.items()]
  if 'config.eval.attacks' not in names:
    small.append("--config.eval.attacks=('clean',)")
  if arguments == _TRAINED or '--mode=evaluate' in arguments:
    # With networks that PyTorch has, too; once it is trained it says so.
    return [*small, '--workdir=runs/digits']
  if 'config.teacher.arch' not in names and not config.startswith('teachers/'):
    small.append('--config.teacher.arch=tiny')
    if 'config.teacher.path' not in names:
      small.append('--config.teacher.path=random')
  if any(name.startswith('config.teachers.clean') for name in names):
    small.append('--config.teachers.clean.arch=tiny')
  if '--config.student.arch=resnet18' in small:
    small.append('--config.student.width=4')
  if 'mobilenet' not in config and 'config.student.arch' not in names:
    small.append('--config.student.arch=tiny')
  if images is not None:  # Noise is for random weights.
    small += ['--config.data.noise_examples=0', f'--config.data.name={images}',
              '--config.data.split=test']
  return small


def _stand_ins(arguments):
  """Returns the weights of a teacher, and images, for a small run."""
  line = ' '.join(arguments)
  if 'stl10' in line:
    weights, images = 'tiny_3_10.npz', 'large.npz'
  elif 'tiny_imagenet' in line:
    weights, images = 'tiny_3_200.npz', 'many_classes.npz'
  elif 'fashion_mnist' in line:
    weights, images = 'tiny_1_10.npz', 'grey.npz'
  elif 'digits' in line:
    weights, images = 'tiny_1_10.npz', 'digits'
  else:
    weights, images = 'tiny_3_10.npz', 'shapes.npz'
  return 'small.pt' if 'teacher.arch' in line else weights, images


def _small_evaluation(arguments):
  small = [word.replace('=wrn_34_10', '=wrn_10_1').replace(
      '--data=cifar10', '--data=shapes.npz') for word in arguments]
  if not any(word.startswith(('--attacks', '--curve')) for word in arguments):
    small.append('--attacks=clean,fgsm')
  return [*small, '--n-examples=8', '--batch-size=8']


def _small_comparison(arguments):
  if not any(word.startswith('-') for word in arguments) and all(
      word.startswith('runs/') for word in arguments):
    return arguments
  if '--seeds=0,1' in arguments:  # This one really runs, two methods.
    small = [_small_config(word) if word == '--config=digits' else word
             for word in arguments if word != '--seeds=0,1']
    return [*small, '--seeds=0', '--config.num_epochs=1',
            '--config.warmup_epochs=0', "--config.eval.attacks=('clean',)",
            '--workdir=runs/compared']
  images = _stand_ins(arguments)[1]
  # A file of images has one split.
  return [*arguments, '--dry-run', f'--config.data.name={images}',
          '--workdir=runs/planned', '--config.data.split=test[:12]', *(
              ['--config.data.train_split=test[12:]']
              if images.endswith('.npz') else [])]


_SMALL_BENCHMARKS = {
    'costs.py': lambda words: [
        word if word.startswith('-') else _small_config(word)
        for word in words],
    'growth.py': lambda words: ['--small', '--steps=1', '--rounds=1'],
    'operations.py': lambda words: ['--config=digits:smoke'],
    'steps.py': lambda words: ['--config=digits:smoke', '--rounds=1',
                               '--seconds=0'],
    'minimum_norm.py': lambda words: ['--images=3', '--rounds=1', '--steps=4',
                                      '--attacks', 'DDN'],
    'ball_attacks.py': lambda words: [*words, '--images=2', '--rounds=1',
                                      '--attacks', 'pgd'],
    'eta.py': lambda words: ['--config=digits:smoke', '--workdir=runs/eta'],
    'log_cost.py': lambda words: words,
}


def _small(command):
  """Returns the variables, the program and the arguments that are run."""
  variables, program, arguments = _words(command)
  if program == 'ferd_jax' and arguments[0] == 'train':
    return variables, program, ['train', *_small_training(arguments[1:])]
  if program == 'main.py' and '--help' not in arguments:
    return variables, program, _small_training(arguments)
  if program == 'ferd_jax.evaluate':
    return variables, program, _small_evaluation(arguments)
  if program == 'ferd_jax.compare':
    return variables, program, _small_comparison(arguments)
  if program == 'ferd_jax.convert':  # That id is of a WRN-34-20.
    return variables, program, [
        word.replace('=cifar10/Rice2020Overfitting', '=cifar10/Wong2020Fast')
        for word in arguments]
  if program.startswith('benchmarks/'):
    return variables, program, _SMALL_BENCHMARKS[
        program.removeprefix('benchmarks/')](arguments)
  if program.startswith('tests/faults/'):
    return variables, program, [re.sub(r'\d+$', '2', word)
                                for word in arguments]
  return variables, program, arguments


def test_what_does_not_run_is_on_a_page():
  shown = pages.commands()
  for reason, those in _NOT_HERE.items():
    assert set(those) <= set(shown), reason


def test_blocks_say_what_they_are():
  """Those without a language are command lines, whose programs are known."""
  assert {block.language for block in pages.blocks()} <= {
      '', 'bash', 'bibtex', 'pycon', 'python', 'text'}
  programs = {_words(command)[1] for command in _RUN}
  assert not [program for program in programs
              if program.endswith('.py') and not (
                  pages.ROOT / program).exists()]
  assert {'main.py', 'ferd_jax', 'ferd_jax.evaluate', 'ferd_jax.compare',
          'ferd_jax.report', 'ferd_jax.convert',
          'ferd_jax.teachers'} <= programs


def _write_network(path, arch, channels, classes, options):
  network = native.Network(arch, channels, classes, options)
  variables = as_if_trained.random_variables(
      network.build(), (32, 32, channels), 0)
  if path.suffix == '.npz':
    native.write(path, network, variables)
  else:
    torch_io.write_state_dict(path, torch_io.state_dict_from_variables(
        network.build(), variables))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Returns a folder with what the commands read."""
  folder = tmp_path_factory.mktemp('commands')
  good, bad = made_runs.right(9, 8, 7, 6), made_runs.right(8, 4, 4, 0)
  curve = [(0.5, 0.4, 0.3, 0.2), (0.9, 0.8, 0.7, 0.6)]
  for i, name in enumerate('abc'):
    made_runs.write(folder / 'runs' / name, {'clean': good, 'pgd20': bad}, i,
                    {'clean': good, 'pgd20': good}, curve=curve)
  compared = folder / 'runs' / 'compare' / 'digits'
  for row, gamma in (('FERD', 0.3), ('no_FAE', 0.)):
    for seed in range(2):
      made_runs.write(compared / row / f'seed_{seed}',
                      {'clean': good, 'pgd20': bad}, seed, curve=curve,
                      inner__gamma=gamma)
  (compared / 'rows.json').write_text('{"FERD": "FERD", "no_FAE": "no FAE"}')
  return folder


@pytest.fixture(scope='module')
def run(place):
  """Returns a function that runs a program in that folder."""
  with running.runner(place) as warm:
    def run(program, *arguments, **variables):
      if '/' not in program:
        program = str(pages.ROOT / program) if program == 'main.py' else program
        return warm(None, *arguments, config=None, before=['tiny', {}],
                    program=program, **variables)
      # A script finds the package and the tests' modules by itself.
      env = {name: value for name, value in os.environ.items()
             if name != 'PYTHONPATH'}
      return subprocess.run(
          [sys.executable, pages.ROOT / program, *arguments], cwd=place,
          capture_output=True, text=True, env=env, check=False)
    yield run


@pytest.fixture(scope='module')
def trained(place, run):
  """Makes runs/digits, by its command, and files of weights and images."""
  rng = np.random.default_rng(0)
  for name, (side, channels, classes) in _IMAGES.items():
    np.savez(place / name, y=np.arange(24) % 10,
             class_names=[f'class {i}' for i in range(classes)],
             x=rng.integers(0, 256, (24, side, side, channels), np.uint8))
  for name, network in _FILES.items():
    _write_network(place / name, *network)
  done = run('main.py', *_small_training(_TRAINED))
  assert done.returncode == 0, done.stderr
  for name in ('cifar10', 'teacher_digits', 'teacher_tiny_imagenet'):
    shutil.copytree(place / 'runs' / 'digits', place / 'runs' / name)


def _run(command, run, place):
  """Runs a command in its small form."""
  for package, word in (('tensorboardX', 'tensorboard'), ('torch', '--check'),
                        ('torch', 'benchmarks/steps'), ('foolbox', 'm_norm'),
                        ('matplotlib', 'ferd_jax.report')):
    if word in command:
      pytest.importorskip(package)
  variables, program, arguments = _small(command)
  if program in ('main.py', 'ferd_jax') and not any(
      word.startswith(('--help', '--workdir=')) for word in arguments):
    workdir = place / 'own' / str(_RUN.index(command))
    arguments.append(f'--workdir={workdir}')
  done = run(program, *arguments, **variables)
  said = f'{program} {shlex.join(arguments)}\n{done.stderr}'
  assert done.returncode == 0, said
  assert 'Traceback' not in done.stderr, said
  assert done.stdout or done.stderr
  for word in arguments:  # What it was to write.
    option, _, value = word.partition('=')
    if option in ('--json', '--out', '--figures', '--workdir') and (
        '--dry-run' not in arguments):
      assert (place / value).exists(), said
  if program == 'ferd_jax.convert':
    assert (place / arguments[1]).exists()


@pytest.mark.parametrize('command', [
    command for command in _RUN if _FAST.search(command)])
def test_fast_commands_run(command, run, place):
  _run(command, run, place)


@pytest.mark.slow
@pytest.mark.parametrize('command', [
    command for command in _RUN if not _FAST.search(command)])
def test_commands_run(command, trained, run, place):
  _run(command, run, place)
