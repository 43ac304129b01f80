"""A published teacher at the paper's full length, unattended.

220 epochs of 200 generator and 400 student steps at batch 256, from the
adversarially trained ResNet-20 of configs/cifar10_resnet20.py:

  python benchmarks/paper_length.py --teacher=CIFAR10-resnet20-adv.pth \
    --minutes=600 --workdir=runs/paper_length [flags of main.py]

It starts main.py, with what is left of the time as its `max_minutes`, again
after a crash (three times at most without a new epoch), and stops when the run
is finished or the time is over; the evaluation of a finished run comes on top.
The same command goes on. What main.py prints is also appended to `log.txt` in
the work directory; at the end come milliseconds per step and the hardware.
"""

import argparse
import pathlib
import statistics
import sys
import time

import main_runs

_CONFIG = main_runs.ROOT / 'configs' / 'cifar10_resnet20.py'


def summary(workdir: pathlib.Path) -> str:
  """Returns a line on speed: medians over epochs but the first, compiling."""
  epochs = main_runs.metrics(workdir)
  hours = sum(epoch['seconds'] for epoch in epochs) / 3600
  parts = [f'{len(epochs)} epochs, {hours:.2f} hours']
  for phase, step in (('synthesis', 'generator'), ('distill', 'student')):
    times = [epoch[f'{phase}/ms_per_step'] for epoch in epochs
             if f'{phase}/ms_per_step' in epoch][1:]
    if times:
      parts.append(f'{statistics.median(times):.1f} ms per {step} step')
  parts += sorted({epoch['devices'] for epoch in epochs})
  return '; '.join(parts)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--teacher', required=True, help='CIFAR10-resnet20-adv')
  parser.add_argument('--minutes', type=float, required=True)
  parser.add_argument('--workdir', type=pathlib.Path,
                      default=pathlib.Path('runs/cifar10_resnet20_paper'))
  parser.add_argument('--variants', default='paper_length')
  args, flags = parser.parse_known_args()
  deadline = time.monotonic() + 60 * args.minutes
  failures = status = 0
  while (left := (deadline - time.monotonic()) / 60) > 0 and failures < 3:
    before = len(main_runs.metrics(args.workdir))
    status = main_runs.run([
        f'--config={_CONFIG}:{args.variants}',
        f'--config.teacher.path={args.teacher}',
        f'--config.max_minutes={left}', *flags], args.workdir)
    if status == 0:
      break
    after = len(main_runs.metrics(args.workdir))
    failures = 0 if after > before else failures + 1
  print(summary(args.workdir))
  sys.exit(status)


if __name__ == '__main__':
  main()
