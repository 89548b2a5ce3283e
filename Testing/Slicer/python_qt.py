"""PythonQt's manners on PySide6: properties are attributes (``button.checked``), signals are connected by signature."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from typing import Any, Callable, Dict, List

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtWidgets

slot_errors: List[Any] = []
"""What slots have raised: Qt swallows it."""
_get_property, _set_property = QtCore.QObject.property, QtCore.QObject.setProperty
_slots: Dict[Any, Callable[..., Any]] = {}


class _QtProperty:
    """A Qt property as an attribute; on the class itself what PySide6 has there."""

    def __init__(self, name: str, on_class: Any) -> None:
        self.name, self.on_class = name, on_class

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self.on_class if instance is None else _get_property(instance, self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        if not _set_property(instance, self.name, value):
            raise TypeError(f"{type(instance).__name__}.{self.name} cannot be {value!r}")


def _with_properties(widget_class: Any) -> Any:
    meta = widget_class.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        if name in ("sizeHint", "minimumSizeHint"):  # virtual methods: Qt itself would call the attribute
            continue
        setattr(widget_class, name, _QtProperty(name, getattr(widget_class, name, None)))
    return widget_class


def _bound_signal(sender: Any, signature: str) -> Any:
    name, arguments = signature.rstrip(")").split("(", 1)
    normalised = QtCore.QMetaObject.normalizedSignature(signature).data().decode()
    if sender.metaObject().indexOfSignal(normalised) < 0:
        raise ValueError(f"{type(sender).__name__} has no signal {signature}")
    signal = getattr(sender, name)
    try:
        return signal[arguments] if arguments and "," not in arguments else signal
    except (KeyError, IndexError):
        return signal


def _connect(sender: Any, signature: str, slot: Callable[..., Any], *more: Any) -> Any:
    if more:  # PySide6's own call, of ``QTimer.singleShot``
        return _plain_getattribute(sender, "connect")(signature, slot, *more)
    parameters = inspect.signature(slot).parameters.values()
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)

    def call(*arguments: Any) -> None:
        try:
            slot(*(arguments if takes_all else arguments[:count]))
        except Exception:
            slot_errors.append(sys.exc_info()[1])  # Qt swallows what a slot raises; tests look here
            raise

    _slots[id(sender), signature, slot] = call
    return _bound_signal(sender, signature).connect(call)


def _disconnect(sender: Any, signature: str, slot: Callable[..., Any]) -> Any:
    return _bound_signal(sender, signature).disconnect(_slots.pop((id(sender), signature, slot)))


_plain_getattribute = QtCore.QObject.__getattribute__


def _getattribute(instance: Any, name: str) -> Any:
    if name == "connect":
        return functools.partial(_connect, instance)
    if name == "disconnect":
        return functools.partial(_disconnect, instance)
    return _plain_getattribute(instance, name)


def make_qt() -> types.ModuleType:
    """The module ``qt``, without its ``QUiLoader``."""
    qt = types.ModuleType("qt")
    for part in (QtCore, QtGui, QtWidgets):
        for name in dir(part):
            if name.startswith("Q"):
                setattr(qt, name, getattr(part, name))
    for value in list(vars(qt).values()):
        if isinstance(value, type) and issubclass(value, QtCore.QObject) and hasattr(value, "staticMetaObject"):
            _with_properties(value)
    QtCore.QObject.__getattribute__ = _getattribute  # type: ignore[method-assign]
    QtCore.QObject.name = property(lambda self: _get_property(self, "objectName"))
    QtCore.QObject.className = lambda self: type(self).__name__
    return qt
