"""Two ways for an object to come back: as it was, or through its constructor."""

import keyword

from torch import nn

from geoflow_plugin.persistence.registry import Kind, arguments_of, register_kind

__all__ = ["CONSTRUCTED", "STATE", "fields_of"]

# What classes learn beside their tensors, apart from attributes that end in "_"
STATE: dict[type, tuple[str, ...]] = {}

_MAX_COUNT = 2**20  # steps, nodes and the like, that somebody would have to wait for
_BARE = nn.Module()
_HOOKS = [name for name in vars(_BARE) if "hooks" in name and "with" not in name]
_NOT_KEPT = {*vars(_BARE), "_compiled_call_impl"}


def fields_of(record, *names, optional=()):
    """The entries of a record, which has to have these and no other.

    Raises
    ------
    ValueError
        If it does not.
    """
    if not set(names) <= set(record) <= {*names, *optional}:
        raise ValueError(f"expected {sorted(names)}, got {sorted(map(str, record))[:20]}")
    found = [record.get(name, {}) for name in (*names, *optional)]
    if not all(isinstance(entry, dict) and len(entry) < 10**6 for entry in found):
        raise ValueError("expected entries by name")
    return found


# The tensors of a module, and of parts that its constructor makes


def _describe_tensors(module, writer, where):
    prefix = f"{where}." if where else ""
    parameters: dict = {}
    buffers: dict = {}
    for path, part in module.named_modules():
        if any(getattr(part, name) for name in _HOOKS):
            raise TypeError(f"{prefix + path or 'root'}: has hooks, which no file can hold.")
        inner, transient = f"{path}." if path else "", part._non_persistent_buffers_set
        for name, p in part._parameters.items():
            if part is module or (p is not None and not writer.owns(p)):
                flag = p is not None and p.requires_grad
                parameters[inner + name] = writer.entry(p, prefix + inner + name, flag)
        for name, b in part._buffers.items():
            if part is module or (b is not None and not writer.owns(b)):
                entry = writer.entry(b, prefix + inner + name, name not in transient)
                buffers[inner + name] = entry
    return {"parameters": parameters, "buffers": buffers}


def _rebuild_tensors(module, parameters, buffers, reader):
    for path, entry in parameters.items():
        part, name = _part(module, path)
        part._parameters[name] = None
        if entry is not None:
            key, trained = _pair(entry)
            part._parameters[name] = reader.parameter(key).requires_grad_(trained)
    for path, entry in buffers.items():
        part, name = _part(module, path)
        part._buffers[name] = None
        if entry is not None:
            key, kept = _pair(entry)
            part._buffers[name] = reader.tensor(key)
            if not kept:
                part._non_persistent_buffers_set.add(name)


def _part(module, path):
    path, _, name = path.rpartition(".")
    return module.get_submodule(path), name


def _pair(entry):
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], bool):
        raise ValueError(f"expected the name of a tensor and a bool, got {str(entry)[:80]}")
    return entry


# As it was: a network, by its attributes, tensors and parts


def _describe_as_it_is(module, writer, where):
    prefix = f"{where}." if where else ""
    attributes = {n: v for n, v in vars(module).items() if n not in _NOT_KEPT}
    return {
        "attributes": {n: writer.value(v, prefix + n) for n, v in attributes.items()},
        "modules": {
            name: None if part is None else writer.value(part, prefix + name)
            for name, part in module._modules.items()
        },
        **_describe_tensors(module, writer, where),
        "mode": {"training": module.training},
    }


def _rebuild_as_it_was(cls, record, reader):
    fields = fields_of(record, "attributes", "modules", "parameters", "buffers", "mode")
    attributes, modules, parameters, buffers, mode = fields
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    if any("." in name for name in (*modules, *parameters, *buffers)):
        raise ValueError("a name of one of its parts has a dot in it")
    for name, value in attributes.items():
        _check_name(cls, name)
        module.__dict__[name] = reader.value(value)
    for name, value in modules.items():
        part = reader.value(value)
        if part is not None and not isinstance(part, nn.Module):
            raise ValueError(f"{name}: expected a module, got {type(part).__name__}")
        module._modules[name] = part
    training = _training(mode)

    def finish():
        module.training = training
        _rebuild_tensors(module, parameters, buffers, reader)

    finish()
    reader.afterwards(finish)
    return module


def _check_name(cls, name):
    """Refuse an attribute that would stand in for a method, or for what torch keeps."""
    taken = getattr(cls, name, None)
    method = callable(taken) or hasattr(taken, "__get__")
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__") or method:
        raise ValueError(f"{name[:80]!r} is no name for an attribute of it")
    if name in _NOT_KEPT:
        raise ValueError(f"{name!r} is torch's own")


def _training(mode):
    training = mode.get("training")
    if not isinstance(training, bool) or len(mode) != 1:
        raise ValueError(f"training: expected a bool, got {str(training)[:80]}")
    return training


# Through the constructor, and what it was not told


def _describe_arguments(thing, writer, where):
    prefix = f"{where}." if where else ""
    record = {
        "arguments": {
            name: writer.value(value, prefix + name)
            for name, value in arguments_of(thing).items()
        }
    }
    if isinstance(thing, nn.Module):
        state = {n: v for n, v in vars(thing).items() if _is_state(type(thing), n)}
        state |= {n: v for n, v in thing._modules.items() if _is_state(type(thing), n)}
        record |= {
            "state": {n: writer.value(v, prefix + n) for n, v in state.items()},
            **_describe_tensors(thing, writer, where),
            "mode": {"training": thing.training},
        }
    return record


def _is_state(cls, name):
    learned = name.endswith("_") and not name.startswith("_")
    return learned or any(name in STATE.get(c, ()) for c in cls.__mro__)


def _arguments(described, reader):
    for name, value in described.items():
        if isinstance(value, int) and abs(value) > _MAX_COUNT:
            raise ValueError(f"{name}: expected {_MAX_COUNT} at most, got {str(value)[:40]}")
    return {name: reader.value(value) for name, value in described.items()}


def _rebuild_by_constructor(cls, record, reader):
    if not issubclass(cls, nn.Module):
        (arguments,) = fields_of(record, "arguments")
        return cls(**_arguments(arguments, reader))
    fields = fields_of(record, "arguments", "state", "parameters", "buffers", "mode")
    arguments, state, parameters, buffers, mode = fields
    module = cls(**_arguments(arguments, reader))
    for name, value in state.items():
        if not _is_state(cls, name):
            raise ValueError(f"{name[:80]!r} is nothing that it learns")
        _check_name(cls, name)
        setattr(module, name, reader.value(value))
    _check_shapes(module, parameters, "_parameters", reader)
    _check_shapes(module, buffers, "_buffers", reader)
    training = _training(mode)

    def finish():
        # constructors convert their parts to one dtype, and switch them to training
        module.train(training)
        _rebuild_tensors(module, parameters, buffers, reader)

    finish()  # what it becomes a part of may ask for its dtype
    reader.afterwards(finish)
    return module


def _check_shapes(module, entries, kind, reader):
    """Refuse tensors of other names or shapes than the constructor made."""
    missing = getattr(module, kind).keys() - entries.keys()
    if missing:
        raise ValueError(f"it lacks {sorted(missing)}")
    for path, entry in entries.items():
        part, name = _part(module, path)
        made = getattr(part, kind).get(name, False)
        tensor = None if entry is None else reader.tensor(_pair(entry)[0])
        shapes = [
            None if t is None else tuple(t.shape) for t in (made, tensor) if t is not False
        ]
        if len(set(shapes)) > 1 or made is False:
            raise ValueError(f"{path[:80]}: expected shape {shapes[0]}, got {shapes[-1]}")


register_kind(nn.Module, AS_IT_IS := Kind(_describe_as_it_is, _rebuild_as_it_was))
register_kind(object, CONSTRUCTED := Kind(_describe_arguments, _rebuild_by_constructor))
