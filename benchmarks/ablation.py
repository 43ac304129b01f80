"""What reweighting, FAE and UTAE contribute, over seeds.

  python benchmarks/ablation.py --config=configs/fashion_mnist.py \
    --seeds 0 1 2 --workdir=runs/ablation [flags of main.py]

Runs main.py once for every variant and seed, each in a directory of its own,
and prints a Markdown table of the students: mean and standard deviation (n - 1)
over the seeds. What is finished is not run again. `--only` runs some of the
variants; the table has all that are finished.

  full            the config as it is
  no reweighting  sampler.name=uniform
  no FAE          synthesis.w_uni=0: no uniformity constraint on features
  no UTAE         inner.gamma=0: the attack is that of RSLAD
  neither         no FAE and no UTAE
"""

import argparse
import pathlib
import statistics
import sys

import main_runs

_NO_FAE = '--config.synthesis.w_uni=0'
_NO_UTAE = '--config.inner.gamma=0'
VARIANTS = {
    'full': [],
    'no reweighting': ['--config.sampler.name=uniform'],
    'no FAE': [_NO_FAE],
    'no UTAE': [_NO_UTAE],
    'neither': [_NO_FAE, _NO_UTAE],
}
_COLUMNS = (('average', '.1%'), ('worst', '.1%'), ('nsd', '.3f'))


def directory(workdir: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
  return workdir / variant.replace(' ', '_') / f'seed_{seed}'


def table(workdir: pathlib.Path, seeds: list[int]) -> str:
  """Returns the table of what is finished."""
  rows, header = [], []
  for variant in VARIANTS:
    found = [main_runs.results(directory(workdir, variant, seed))
             for seed in seeds]
    students = [result['models']['student'] for result in found if result]
    if not students:
      continue
    header = ['variant', 'seeds']
    cells = [variant, str(len(students))]
    for attack in students[0]:
      for column, form in _COLUMNS:
        values = [student[attack][column] for student in students]
        cell = format(statistics.mean(values), form)
        if len(values) > 1:
          cell += ' ± ' + format(statistics.stdev(values), form)
        cells.append(cell)
        header.append(f'{attack} {column}')
    rows.append(cells)
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--config', required=True)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--only', nargs='*', choices=VARIANTS,
                      default=list(VARIANTS))
  parser.add_argument('--workdir', type=pathlib.Path,
                      default=pathlib.Path('runs/ablation'))
  args, flags = parser.parse_known_args()
  for seed in args.seeds:
    for variant in args.only:
      status = main_runs.run(
          [f'--config={args.config}', *flags, *VARIANTS[variant],
           f'--config.seed={seed}'], directory(args.workdir, variant, seed))
      if status:
        sys.exit(status)
  print(table(args.workdir, args.seeds))


if __name__ == '__main__':
  main()
