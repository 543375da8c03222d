"""Objects as a table: each one by its class and what it is made of, earlier ones by number.

An object that is shared is in the table once, so that it stays shared; a table has no
cycles; and reading it needs no recursion, however deep the model is.
"""

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from geoflow_plugin.persistence.registry import class_named, kind_of, name_of
from geoflow_plugin.persistence.values import decode, encode

__all__ = ["Reader", "Writer"]


class Writer:
    """Collects the objects that a root is made of, and their tensors by name.

    Attributes
    ----------
    objects : list of dict
    tensors : dict of torch.Tensor
    layouts : dict of list of int
        Axes by falling stride, of tensors that are not in the order of their axes: matrix
        products round in another way then.
    """

    def __init__(self, root):
        self.objects: list[dict] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.layouts: dict[str, list[int]] = {}
        self._names: dict[int, str] = {}  # of tensors, by identity
        self._owned: set[int] = set()
        self._numbers: dict[int, int | None] = {}  # of objects; None while in the making
        self._kept: list = []  # or an identity could come again
        modules = root.named_modules() if isinstance(root, nn.Module) else ()
        self.places = {id(module): name for name, module in modules}

    def value(self, value, where):
        """A plain value, or a reference, as JSON."""
        return encode(value, self, where)

    def tensor(self, tensor, name):
        """Name under which a tensor is in the file; the same for one that was there."""
        if id(tensor) not in self._names:
            _refuse_odd(tensor, name)
            while name in self.tensors:
                name += "'"
            self._names[id(tensor)] = name
            self._kept.append(tensor)
            self.tensors[name] = tensor.detach()
            if not tensor.is_contiguous():
                strides = tensor.stride()
                self.layouts[name] = sorted(range(tensor.ndim), key=lambda a: -strides[a])
        return self._names[id(tensor)]

    def owns(self, tensor):
        """Whether some module of the file says that a tensor is its own."""
        return id(tensor) in self._owned

    def entry(self, tensor, name, flag):
        """A tensor of a module, or None where it has none, beside a flag."""
        if tensor is None:
            return None
        self._owned.add(id(tensor))
        return [self.tensor(tensor, name), flag]

    def object(self, thing, where):
        """Number of an object in the table.

        Raises
        ------
        TypeError
            If a file may not name its class, or it refers to itself.
        """
        if id(thing) in self._numbers:
            number = self._numbers[id(thing)]
            if number is None:
                raise TypeError(f"{where}: refers back to what it is a part of.")
            return number
        cls, where = type(thing), self.places.get(id(thing), where)
        name = name_of(cls)
        if name is None:
            raise TypeError(
                f"{where or 'root'}: a {cls.__module__}.{cls.__qualname__} cannot be "
                "described in a file. Put @geoflow_plugin.register_saved on its class, or "
                "keep the state_dict alone and make the model anew by your own code."
            )
        self._numbers[id(thing)] = None
        self._kept.append(thing)
        self.objects.append({"class": name, **kind_of(cls).describe(thing, self, where)})
        self._numbers[id(thing)] = len(self.objects) - 1
        return self._numbers[id(thing)]

    def check_complete(self, root):
        """Refuse a module that has tensors which no description has led to.

        Raises
        ------
        TypeError
            If there are any.
        """
        if isinstance(root, nn.Module):
            for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
                if not self.owns(tensor):
                    raise TypeError(
                        f"{name}: is in no argument that its {type(root).__qualname__} is "
                        "made from; register_saved(cls, arguments=...) says what is."
                    )


def _laid_out(tensors, layouts):
    """Copies in torch's own, aligned memory, with axes in the order that they had."""
    if not isinstance(layouts, dict) or not layouts.keys() <= tensors.keys():
        raise ValueError("it has no layouts of its tensors")
    copies = {}
    for name, tensor in tensors.items():
        axes = layouts.get(name, [*range(tensor.ndim)])
        if not isinstance(axes, list) or sorted(map(str, axes)) != sorted(
            map(str, range(tensor.ndim))
        ):
            raise ValueError(f"{name}: no axes are in the order {str(axes)[:80]}")
        copies[name] = torch.empty_permuted(tensor.shape, axes, dtype=tensor.dtype).copy_(
            tensor
        )
    return copies


def _refuse_odd(tensor, name):
    if is_lazy(tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise TypeError(f"{name}: expected a dense tensor with values, got {type(tensor)}.")


class Reader:
    """Makes the objects of a table again, one after the other.

    Raises
    ------
    ValueError
        For a table that no ``Writer`` made.
    """

    def __init__(self, table, tensors, layouts):
        self.tensors, self.unused = _laid_out(tensors, layouts), set(tensors)
        self.objects: list = []
        self._after: list = []
        # bytes for copies of tensors that constructors make, and for spaces
        self._budgets = [16 * sum(t.nbytes for t in tensors.values()) + 2**24, 2**32]
        self._parameters: dict[str, nn.Parameter] = {}
        if not isinstance(table, list) or not table:
            raise ValueError("it describes no object")
        for record in table:
            name = record.get("class") if isinstance(record, dict) else None
            cls = class_named(name)
            if cls is None:
                raise ValueError(
                    f"the class {str(name)[:80]!r} is none that a file may name; if it is "
                    "yours, import the module that puts @register_saved on it"
                )
            record = {key: value for key, value in record.items() if key != "class"}
            try:
                self.objects.append(kind_of(cls).rebuild(cls, record, self))
            except Exception as error:  # whatever a constructor says of odd arguments
                raise ValueError(f"no {name} can be made of what it says: {error}") from error
        for finish in reversed(self._after):  # what a part says goes over what its whole says
            finish()
        self._check_complete(self.objects[-1])
        if self.unused:
            raise ValueError(f"it holds tensors of nothing: {sorted(self.unused)[:5]}")

    def _check_complete(self, root):
        ours = {id(t) for t in (*self._parameters.values(), *self.tensors.values())}
        if isinstance(root, nn.Module):
            for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
                if id(tensor) not in ours:
                    raise ValueError(f"it lacks the tensor of {name}")

    def value(self, value):
        """The plain value, tensor or object that JSON describes."""
        return decode(value, self)

    def tensor(self, name):
        """A tensor of the file."""
        if not isinstance(name, str) or name not in self.tensors:
            raise ValueError(f"it lacks the tensor {str(name)[:80]!r}")
        self.unused.discard(name)
        return self.tensors[name]

    def argument(self, name):
        """A tensor of the file for a constructor, which may copy it."""
        tensor = self.tensor(name)
        self._spend(0, tensor.nbytes)
        return tensor

    def make_room(self, n_bytes):
        """Count what a space takes, lest a small file of many takes everything.

        Raises
        ------
        ValueError
            If it is more than any model has a use for.
        """
        self._spend(1, n_bytes)

    def _spend(self, purpose, n_bytes):
        self._budgets[purpose] -= n_bytes
        if self._budgets[purpose] < 0:
            raise ValueError("it takes more memory than a file of its size has a use for")

    def parameter(self, name):
        """A tensor of the file as a parameter, the same one for all who share it."""
        tensor = self.tensor(name)
        if name not in self._parameters:
            self._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        self._parameters[name].data = tensor
        return self._parameters[name]

    def object(self, number):
        """An earlier object of the table."""
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{str(number)[:80]!r} is no number of an object")
        if not 0 <= number < len(self.objects):
            raise ValueError(f"there is no object {number} before the one that refers to it")
        return self.objects[number]

    def afterwards(self, finish):
        """Call this once all objects are there, later ones first."""
        self._after.append(finish)
