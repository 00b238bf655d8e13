"""An extension of griffe: in a docstring, "name: what it is." of a parameter or field becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Object


class Names(Extension):
    """The docstrings of functions and classes, before they are rendered."""

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """A function's parameters."""
        itemise(func, [parameter.name for parameter in func.parameters])

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """A class's fields, less what belongs to the class: a dataclass does not take that."""
        for name in [
            name for name, each in cls.members.items() if each.is_attribute and "ClassVar" in str(each.annotation)
        ]:
            del cls.members[name]
        itemise(cls, [*cls.members, *(p.name for m in cls.members.values() if m.is_function for p in m.parameters)])


def itemise(obj: Object, names: list[str]) -> None:
    """Begin an item at each `name:` or `name, other:` that stands at the start of a line or sentence."""
    known = "|".join(sorted({re.escape(name.lstrip("*")) for name in names}, key=len, reverse=True))
    if obj.docstring is None or not known:
        return
    item = re.compile(rf"(?:(?<=[.;])[ \n]+|^)((?:{known})(?:, (?:{known}))*):\s+", re.MULTILINE)
    parts = re.sub(r"<(?=\w+>)", "&lt;", obj.docstring.value).split("\n\n")
    obj.docstring.value = "\n\n".join(_listed(part, item) for part in parts)


def _listed(paragraph: str, item: re.Pattern[str]) -> str:
    if paragraph.lstrip().startswith(("Args:", "Returns:", "Raises:")) or not item.search(paragraph):
        return paragraph
    before, *rest = item.split(paragraph)
    items = "\n".join(f"- **{names}**: {text}" for names, text in zip(rest[::2], rest[1::2], strict=True))
    return f"{before}\n\n{items}".strip()
