"""What libraries say of files that they cannot read, in one line."""


def reason(error: Exception) -> str:
  """Returns an error's first line, or its kind if it says nothing."""
  text = str(error).strip() or type(error).__name__
  line = text.splitlines()[0].rstrip('.')
  return shown(line, 2000)


def shown(text: str, longest: int = 100) -> str:
  """Returns a text from outside as a message may quote it.

  Terminals obey control characters, and names in a file have any length.

  Args:
    text: to quote.
    longest: what is longer loses its middle.
  """
  if len(text) > longest:
    text = f'{text[:longest // 2]}...{text[-longest // 2:]}'
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
