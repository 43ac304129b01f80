"""Digests of what is kept in files, by which damage is seen."""

import hashlib
import json
from typing import Any


def of_json(values: Any) -> str:
  """Returns the SHA-256 of JSON values, whatever the order of their keys."""
  return hashlib.sha256(
      json.dumps(values, sort_keys=True).encode()).hexdigest()
