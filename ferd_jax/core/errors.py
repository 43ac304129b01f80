"""What libraries say of files that they cannot read, in one line."""


def reason(error: Exception) -> str:
  """Returns an error's first line, or its kind if it says nothing."""
  text = str(error).strip() or type(error).__name__
  line = text.splitlines()[0].rstrip('.')
  # Messages quote what they found, and terminals obey control characters.
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
