"""Distils a robust student from a robust teacher without data.

  python main.py --config=configs/digits.py

`--help` shows more; ferd_jax/train_command.py is what runs.
"""

from ferd_jax import train_command

if __name__ == '__main__':
  train_command.main()
