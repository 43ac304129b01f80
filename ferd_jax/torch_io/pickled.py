"""Reads pickles without executing anything that they name.

A pickle is a program for a stack machine, which may import and call any
function. This machine knows the operations that build plain data; whatever a
pickle names comes from a table of the caller's. What is not in it becomes an
`Unread`, which takes in whatever the pickle does to it and keeps nothing. So
files with objects of any kind beside the weights are read, and still nothing
that they name is imported or called.

Nothing recurses, no number of the pickle is believed before what it counts is
there, and what is built is charged to a budget: a program of a few bytes can
ask for a text that doubles with each step.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import struct
from typing import Any
from typing import NamedTuple

from ferd_jax.core import errors

ENDS_EARLY = 'it ends too early; download it again.'

# Of keys with parts, such as nested tuples, hashing can take forever.
_KEYS = (str, int, float, bool, bytes, type(None))
# Whole numbers that differ by multiples of 2 ** 61 - 1 have one hash.
_LARGEST_KEY = 2 ** 60

# What a program may cost: operations, and bytes beyond twice its own. The
# checkpoint of a network of 1,000 layers with its optimiser takes a tenth.
MOST_OPERATIONS = 4_000_000
_BUDGET = 256 << 20
# Charges in bytes, of the order of what Python needs.
_OPERATION, _SET, _CALL, _ELEMENT = 64, 256, 512, 64

_ALONE = 'save its state_dict alone with torch'


class Refusal(ValueError):
  """A reason, in one line, not to use a file."""


class Constructor(NamedTuple):
  """A function that a pickle may call, by the name of what it stands for."""
  build: Callable[..., Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Unread:
  """What stands for an object that is no plain data, or could not be built.

  Attributes:
    name: of what the pickle asked for, 'datetime.datetime'.
    cure: how to save it so that it is read.
  """
  name: str
  cure: str = _ALONE

  def __str__(self) -> str:
    return f'a pickled {self.name}'

  @property
  def is_tensor(self) -> bool:
    """Whether it stands for numbers, of a kind that is not read."""
    return self.name.startswith(('tensor ', 'torch._utils._rebuild_'))


class Pickled(NamedTuple):
  """What a pickle holds, and where it ends."""
  value: Any
  end: int


def load(data: bytes, names: Mapping[str, Any],
         persistent: Callable[[Any], Any], start: int = 0) -> Pickled:
  """Returns the value of the pickle that begins at `start`.

  Dicts, lists, tuples, sets, text, bytes, numbers, None and what `names` and
  `persistent` return are all that it can be made of, with an `Unread` in the
  place of everything else. Texts of Python 2 are latin-1. Attributes that a
  pickle sets are passed to the method `set_state` of objects that have one, and
  dropped for dicts.

  Args:
    data: bytes in which the pickle lies, of protocols 0 to 5.
    names: what globals such as `collections.OrderedDict` stand for; a
      `Constructor` can be called, everything else is a value.
    persistent: returns the object of a persistent id.
    start: position of its first byte.

  Raises:
    Refusal: if the pickle ends too early, is damaged, or asks for more memory
      than 256 MiB and twice its size.
  """
  machine = _Machine(data, start, names, persistent)
  try:
    return Pickled(machine.run(), machine.position)
  except Refusal:
    raise
  except Exception as error:
    # Of damage: text that is none, a list where a dict should be and so on.
    raise Refusal(f'its pickle is damaged near byte {machine.position} '
                  f'({type(error).__name__}).') from error


class _Machine:
  """The state of one reading: position, stack, marks, memo and budget."""

  def __init__(self, data, start, names, persistent):
    self.data, self.position = data, start
    self.names, self.persistent = names, persistent
    self.stack, self.marks, self.memo = [], [], {}
    self.budget = _BUDGET + 2 * len(data)

  def run(self):
    for _ in range(MOST_OPERATIONS):
      code = self.take(1)
      if code == b'.':
        if len(self.stack) != 1 or self.marks:
          raise Refusal('its pickle is damaged: it leaves no single value.')
        return self.pop()
      operation = _OPERATIONS.get(code)
      if operation is None:
        raise Refusal(f'its pickle has the operation {code!r}, which none of '
                      'plain data needs.')
      operation(self)
      self.charge(_OPERATION)
    raise Refusal(f'its pickle has more than {MOST_OPERATIONS:,} operations, '
                  f'which no state dict needs; {_ALONE}.')

  def charge(self, size):
    """Pays for what has been or will be built, in bytes."""
    self.budget -= size
    if self.budget < 0:
      raise Refusal('its pickle asks for much more memory than its size, which '
                    f'no state dict needs; {_ALONE}.')

  def take(self, size):
    """Returns the next bytes."""
    end = self.position + size
    if end > len(self.data):
      raise Refusal(ENDS_EARLY)
    start, self.position = self.position, end
    return self.data[start:end]

  def number(self, layout):
    return struct.unpack('<' + layout, self.take(struct.calcsize(layout)))[0]

  def counted(self, layout):
    """Returns bytes that follow their own number."""
    return self.take(self.number(layout))

  def line(self):
    end = self.data.find(b'\n', self.position)
    if end < 0:
      raise Refusal(ENDS_EARLY)
    return self.take(end + 1 - self.position)[:-1]

  def push(self, value):
    self.stack.append(value)

  def pop(self):
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise Refusal('its pickle is damaged: it takes more than it has.')
    return self.stack.pop()

  def top(self):
    value = self.pop()
    self.push(value)
    return value

  def pop_to_mark(self):
    start = self.marks.pop()
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def pop_several(self, count):
    return tuple(reversed([self.pop() for _ in range(count)]))

  def remember(self, key):
    self.memo[key] = self.top()

  def name(self, module, attribute):
    if not (isinstance(module, str) and isinstance(attribute, str)):
      raise Refusal('its pickle is damaged: it names what has no name.')
    # What Python 2 called `builtins`.
    module = {'__builtin__': 'builtins'}.get(module, module)
    name = f'{module}.{attribute}'
    self.push(self.names[name] if name in self.names
              else Unread(errors.shown(name)))

  def call(self):
    arguments, constructor = self.pop(), self.pop()
    if type(arguments) is not tuple:
      raise Refusal('its pickle calls with no arguments.')
    if isinstance(constructor, Unread):
      self.push(constructor)
      return
    if not isinstance(constructor, Constructor):
      raise Refusal('its pickle calls what is no function.')
    self.charge(_CALL + sum(map(_size, arguments)))
    self.push(constructor.build(*arguments))

  def call_named(self):
    self.pop()  # Arguments by name, which nothing that is read has.
    self.call()

  def instance(self):
    """Makes an object of a class of Python 2, which is never read."""
    self.pop_to_mark()
    self.name(_text(self.line()), _text(self.line()))
    value = self.pop()
    self.push(value if isinstance(value, Unread) else Unread('object'))

  def set_state(self):
    state, value = self.pop(), self.top()
    if hasattr(value, 'set_state'):
      self.charge(_size(state))
      value.set_state(state)
    elif not isinstance(value, dict | Unread):
      raise Refusal('its pickle is damaged: it sets attributes of a '
                    f'{type(value).__name__}.')

  def set_items(self, items):
    value = self.top()
    if isinstance(value, Unread):
      return
    if type(value) is not dict or len(items) % 2:
      raise Refusal('its pickle is damaged: it fills no dict.')
    for key, item in zip(items[::2], items[1::2], strict=True):
      value[checked_key(key)] = item

  def append(self, items):
    value = self.top()
    if isinstance(value, Unread):
      return
    if type(value) is not list:
      raise Refusal('its pickle is damaged: it fills no list.')
    value.extend(items)

  def new_set(self, values=()):
    self.charge(_SET)
    self.push(set(map(checked_key, values)))

  def add(self, items):
    value = self.top()
    if isinstance(value, Unread):
      return
    if type(value) is not set:
      raise Refusal('its pickle is damaged: it fills no set.')
    value.update(map(checked_key, items))

  def refer(self):
    self.push(self.persistent(self.pop()))


def checked_key(key: Any) -> Any:
  """Returns a key of a dict, or an element of a set, that is a plain value.

  Raises:
    Refusal: for anything else.
  """
  if type(key) not in _KEYS or (
      type(key) is int and abs(key) > _LARGEST_KEY):
    raise Refusal(f'it has a {type(key).__name__} for a key that is none.')
  return key


def _size(value):
  """Returns about how many bytes a copy of a value takes, without its parts."""
  if isinstance(value, str | bytes):
    return len(value)
  if isinstance(value, list | tuple | dict | set | frozenset):
    return _ELEMENT * len(value)
  return 0


def _truth_or_number(machine):
  text = machine.line()
  truths = {b'00': False, b'01': True}
  machine.push(truths[text] if text in truths else int(text))


def _filled_dict(machine):
  items = machine.pop_to_mark()
  machine.push({})
  machine.set_items(items)


# By code; the names are those of the module pickletools.
_OPERATIONS = {
    b'\x80': lambda m: m.take(1),  # PROTO
    b'\x95': lambda m: m.take(8),  # FRAME
    # Numbers and None.
    b'N': lambda m: m.push(None),
    b'\x88': lambda m: m.push(True),
    b'\x89': lambda m: m.push(False),
    b'I': _truth_or_number,
    b'J': lambda m: m.push(m.number('i')),
    b'K': lambda m: m.push(m.number('B')),
    b'M': lambda m: m.push(m.number('H')),
    b'L': lambda m: m.push(int(m.line().rstrip(b'L'))),
    b'\x8a': lambda m: m.push(
        int.from_bytes(m.counted('B'), 'little', signed=True)),
    b'F': lambda m: m.push(float(m.line())),
    b'G': lambda m: m.push(struct.unpack('>d', m.take(8))[0]),
    # Text and bytes.
    b'V': lambda m: m.push(m.line().decode('raw-unicode-escape')),
    b'X': lambda m: m.push(_text(m.counted('I'))),
    b'\x8c': lambda m: m.push(_text(m.counted('B'))),
    b'\x8d': lambda m: m.push(_text(m.counted('Q'))),
    b'U': lambda m: m.push(m.counted('B').decode('latin1')),
    b'T': lambda m: m.push(m.counted('I').decode('latin1')),
    b'C': lambda m: m.push(m.counted('B')),
    b'B': lambda m: m.push(m.counted('I')),
    b'\x8e': lambda m: m.push(m.counted('Q')),
    b'\x96': lambda m: m.push(m.counted('Q')),  # A bytearray.
    # Containers.
    b'(': lambda m: m.marks.append(len(m.stack)),
    b')': lambda m: m.push(()),
    b'\x85': lambda m: m.push(m.pop_several(1)),
    b'\x86': lambda m: m.push(m.pop_several(2)),
    b'\x87': lambda m: m.push(m.pop_several(3)),
    b't': lambda m: m.push(tuple(m.pop_to_mark())),
    b']': lambda m: m.push([]),
    b'l': lambda m: m.push(m.pop_to_mark()),
    b'a': lambda m: m.append([m.pop()]),
    b'e': lambda m: m.append(m.pop_to_mark()),
    b'}': lambda m: m.push({}),
    b'd': _filled_dict,
    b's': lambda m: m.set_items(m.pop_several(2)),
    b'u': lambda m: m.set_items(m.pop_to_mark()),
    b'\x8f': lambda m: m.new_set(),
    b'\x90': lambda m: m.add(m.pop_to_mark()),
    b'\x91': lambda m: m.new_set(m.pop_to_mark()),  # frozenset
    # The stack and the memo.
    b'0': lambda m: m.pop(),
    b'1': lambda m: m.pop_to_mark(),
    b'2': lambda m: m.push(m.top()),
    b'p': lambda m: m.remember(int(m.line())),
    b'q': lambda m: m.remember(m.number('B')),
    b'r': lambda m: m.remember(m.number('I')),
    b'\x94': lambda m: m.remember(len(m.memo)),
    b'g': lambda m: m.push(m.memo[int(m.line())]),
    b'h': lambda m: m.push(m.memo[m.number('B')]),
    b'j': lambda m: m.push(m.memo[m.number('I')]),
    # What is named.
    b'c': lambda m: m.name(_text(m.line()), _text(m.line())),
    b'\x93': lambda m: m.name(*m.pop_several(2)),
    b'R': lambda m: m.call(),
    b'\x81': lambda m: m.call(),
    b'\x92': lambda m: m.call_named(),
    b'i': lambda m: m.instance(),
    b'o': lambda m: m.push(_of_class(m.pop_to_mark())),
    b'b': lambda m: m.set_state(),
    b'P': lambda m: m.push(m.persistent(_text(m.line()))),
    b'Q': lambda m: m.refer(),
}


def _of_class(values):
  """Returns an object of Python 2 of a class, which is never read."""
  return values[0] if isinstance(values[0], Unread) else Unread('object')


def _text(data):
  return data.decode('utf-8', 'surrogatepass')
