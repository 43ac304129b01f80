"""TFDS's split syntax ('test', 'train[:10%]') as row ranges of any source."""

from collections.abc import Mapping
from collections.abc import Sequence


def row_ranges(split: str, shard_lengths: Mapping[str, Sequence[int]],
               source: str) -> list[tuple[str, int, int]]:
  """Resolves a split in TFDS's syntax.

  Args:
    split: as https://www.tensorflow.org/datasets/splits says, e.g. 'test',
      'train[55000:]', 'test[:10%]' or 'train+test'.
    shard_lengths: for each split of the source, the number of examples in each
      of its files.
    source: what the examples come from, for error messages.

  Returns:
    (name of the split, first row, row after the last) for each term of the sum,
    none of them empty.

  Raises:
    ValueError: if the syntax is wrong, the source has no such split or rows,
      or the split selects no example.
  """
  if split in shard_lengths:
    # The usual case has to do without the import below.
    ranges = [(split, 0, sum(shard_lengths[split]))]
  else:
    import tensorflow_datasets as tfds  # Takes about a second.
    infos = {
        name: tfds.core.SplitInfo(name, shard_lengths=list(n), num_bytes=0)
        for name, n in shard_lengths.items()}
    try:
      terms = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:
      raise ValueError(f'{source}, split {split!r}: {error}') from None
    ranges = [
        (term.splitname, term.from_ or 0,
         infos[term.splitname].num_examples if term.to is None else term.to)
        for term in terms]
  ranges = [(name, start, stop) for name, start, stop in ranges if start < stop]
  if not ranges:
    raise ValueError(f'{source}: split {split!r} selects no example.')
  return ranges
