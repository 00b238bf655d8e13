"""A hook of mkdocs: the pages of the site that are made and not written.

Rules and remedies from their registries, Python from `throughtime.__all__`, the command line from click, JSON from the schema.
A new rule, remedy, public name or option has its place here without anyone editing a page. In a page, `<!-- site: NAME -->`
stands for a part that is made; in mkdocs.yml's nav, `FOLDER/*` for all pages made in that folder.
"""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import throughtime
from throughtime.cli import main as command_line
from throughtime.diagnosis.rule import Rule
from throughtime.diagnosis.rule import registry as rules
from throughtime.explorer import page as explorer
from throughtime.remedies import Remedy, registered, treating

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "src/throughtime/report/schema.json"
WIDTH = 78
"""Of the commands' help, whatever the terminal that builds the site."""
CODE = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
PART = re.compile(r"<!-- site: (?P<name>[\w-]+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and give them their places in the navigation."""
    made = pages()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    files.append(File.generated(config, "schema.json", content=SCHEMA.read_text(encoding="utf-8")))
    files.append(File.generated(config, "explorer.html", content=explorer.render()))
    config.nav = _filled(config.nav, sorted(made))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put made parts into their places."""
    return PART.sub(lambda found: PARTS[found["name"]](), markdown)


def pages() -> dict[str, str]:
    """Every page that is made, by its path below docs/."""
    made = {f"rules/{rule.code}.md": _rule(rule) for rule in rules().values()}
    made |= {f"remedies/{remedy.name}.md": _remedy(remedy) for remedy in registered().values()}
    made |= {f"reference/{module}.md": _reference(module, names) for module, names in (public() | imported()).items()}
    return made


def _filled(nav: Any, made: list[str]) -> Any:
    """The navigation with each FOLDER/* replaced by the pages made there."""
    if isinstance(nav, dict):
        return {title: _filled(part, made) for title, part in nav.items()}
    if not isinstance(nav, list):
        return nav
    filled: list[Any] = []
    for part in nav:
        if isinstance(part, str) and part.endswith("/*"):
            filled += [path for path in made if path.startswith(part[:-1])]
        else:
            filled.append(_filled(part, made))
    return filled


# --- rules and remedies ---------------------------------------------------------------------------------------------------


def weight(rule: Rule) -> str:
    """What a finding of the rule counts for."""
    return "preview" if rule.preview else rule.severity


def _rule(rule: Rule) -> str:
    remedies = ", ".join(f"[{each.name}](../remedies/{each.name}.md)" for each in treating(rule.code))
    applied = f" · remedy that is applied and measured: {remedies}" if remedies else ""
    return (
        f"# {rule.code} {rule.name}\n\n{weight(rule)}{applied} · in a terminal: `throughtime explain {rule.code}`\n\n"
        f"{_linked(rule.text(), 'rules')}\n"
    )


def _remedy(remedy: Remedy) -> str:
    treats = ", ".join(f"[{code} {rules()[code].name}](../rules/{code}.md)" for code in remedy.treats)
    safe = "only initial values; your training code and checkpoints stay as they are" if remedy.safe else "the model"
    references = "\n".join(f"- {reference}" for reference in remedy.references)
    text = _linked(inspect.cleandoc(type(remedy).__doc__ or ""), "remedies")
    return (
        f"# {remedy.name}\n\n{text}\n\n## Facts\n\n- Treats: {treats}\n- Changes: {safe}\n- Sets: {remedy.formula}\n"
        f"- Needs to know: {', '.join(f'`{name}`' for name in remedy.evidence) or 'nothing'}\n"
        f"- Tried out by `throughtime diagnose … --verify`, which trains pairs of networks with and without it\n\n"
        f"## References\n\n{references}\n"
    )


def _linked(docstring: str, folder: str) -> str:
    """Pages that a docstring names by their path in the repository, and rules that it names by code, as links."""
    text = re.sub(r"(?<![`/])docs/([\w-]+)\.md", r"[\1](../\1.md)", docstring)

    up = "" if folder == "rules" else "../rules/"

    def link(found: re.Match[str]) -> str:
        return f"[{found[0]}]({up}{found[0]}.md)" if found[0] in rules() else found[0]

    code = ("    ", "#")  # and headings
    return "\n".join(line if line.startswith(code) else re.sub(r"\bTT\d{3}\b", link, line) for line in text.split("\n"))


def rules_table() -> str:
    """All rules, one line each."""
    lines = [f"| [{r.code}](rules/{r.code}.md) | {r.name} | {weight(r)} | {r.summary()} |" for r in rules().values()]
    return "\n".join(["| code | name | weight | says |", "|---|---|---|---|", *lines])


def remedies_table() -> str:
    """All remedies, one line each."""
    lines = [
        f"| [{r.name}](remedies/{r.name}.md) | {', '.join(f'[{code}](rules/{code}.md)' for code in r.treats)} | {r.formula} |"
        for r in registered().values()
    ]
    return "\n".join(["| remedy | treats | sets |", "|---|---|---|", *lines])


# --- Python ---------------------------------------------------------------------------------------------------------------


def public() -> dict[str, list[str]]:
    """Public names by the module that defines them; a name that is itself a module: everything public in it."""
    found: dict[str, list[str]] = {}
    for name in throughtime.__all__:
        value = getattr(throughtime, name)
        if inspect.ismodule(value):
            found.setdefault(value.__name__.removeprefix("throughtime."), []).append(name)
        elif not name.startswith("__"):
            found.setdefault(value.__module__.removeprefix("throughtime."), []).append(name)
    return dict(sorted(found.items(), key=lambda item: item[1][0].lower()))


def imported() -> dict[str, list[str]]:
    """Names that the pages' code imports from other modules, by module: what a reader is shown is documented too."""
    found: dict[str, set[str]] = {}
    for page in (ROOT / "docs").rglob("*.md"):
        blocks = [textwrap.dedent(code) for _, code in CODE.findall(page.read_text(encoding="utf-8"))]
        for node in (node for code in blocks for node in ast.walk(ast.parse(code))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("throughtime."):
                continue
            module = str(node.module).removeprefix("throughtime.")
            if not any(module == each or module.startswith(f"{each}.") for each in public()):
                found.setdefault(module, set()).update(name.name for name in node.names)
    return {module: sorted(names) for module, names in sorted(found.items())}


def _reference(module: str, names: list[str]) -> str:
    """The page of a module: these names and the classes beside them, or all of it where it is itself a public name."""
    path, whole = f"throughtime.{module}", module in names
    loaded = import_module(path)
    title = ", ".join(f"tt.{name}" for name in names) if module in public() else path
    text = _introduced(loaded) if whole else ""
    # The classes beside a public function are what it takes or gives back.
    beside = [key for key in _own(loaded) if inspect.isclass(vars(loaded)[key])]
    text += _blocks(loaded, _own(loaded) if whole else [*dict.fromkeys([*names, *beside])], 2)
    if whole and not _own(loaded) and hasattr(loaded, "__path__"):
        for each in pkgutil.iter_modules(loaded.__path__):
            part = import_module(f"{path}.{each.name}")
            text += f"## {title}.{each.name}\n\n{_introduced(part)}{_blocks(part, _own(part), 3)}"
    return f"---\ntitle: {title}\n---\n\n# {title}\n\n{text}"


def _own(module: ModuleType) -> list[str]:
    """Functions and classes that a module offers: its __all__, or those it defines."""
    names = getattr(module, "__all__", None) or [
        key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    kinds = (inspect.isroutine, inspect.isclass)
    return [key for key in names if key[0] != "_" and any(kind(vars(module).get(key)) for kind in kinds)]


def _introduced(module: ModuleType) -> str:
    return f"{_linked(inspect.cleandoc(module.__doc__ or ''), 'reference')}\n\n"


def _blocks(module: ModuleType, names: list[str], level: int) -> str:
    """What mkdocstrings is asked for."""
    values = (getattr(module, name) for name in names)
    return "".join(
        f"::: {v.__module__}.{v.__qualname__}\n    options:\n      heading_level: {level}\n\n" for v in values
    )


def python_table() -> str:
    """All public names, with the first line of their docstrings."""
    lines = []
    for module, names in public().items():
        for name in names:
            first = inspect.cleandoc(getattr(throughtime, name).__doc__ or "").partition("\n")[0].replace("|", "\\|")
            lines.append(f"| [`tt.{name}`](reference/{module}.md) | {first} |")
    return "\n".join(["| name | |", "|---|---|", *sorted(lines, key=str.lower)])


def imported_table() -> str:
    """What pages import by module."""
    lines = [
        f"| [`throughtime.{module}`](reference/{module}.md) | {', '.join(f'`{name}`' for name in names)} |"
        for module, names in imported().items()
    ]
    return "\n".join(["| module | names |", "|---|---|", *lines])


# --- the command line and JSON --------------------------------------------------------------------------------------------


def helps() -> Iterator[tuple[str, str]]:
    """(command, what its --help prints) of the group and of each command."""
    settings = command_line.context_settings | {"terminal_width": WIDTH}
    context = click.Context(command_line, info_name="throughtime", **settings)
    yield "throughtime", command_line.get_help(context)
    for name, command in command_line.commands.items():
        inner = click.Context(command, parent=context, info_name=name, **settings)
        yield f"throughtime {name}", command.get_help(inner)


def command_line_parts() -> str:
    """The help of every command."""
    return "\n\n".join(f"## {name}\n\n```text\n{told}\n```" for name, told in helps())


def json_fields() -> str:
    """The schema as a list of fields."""
    lines = [f"| `{path}` | {kind} |" for path, kind in _fields(json.loads(SCHEMA.read_text(encoding="utf-8")), "")]
    return "\n".join(["| field | type |", "|---|---|", *lines])


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    if path:
        yield path, _kind(schema)
    for alternative in [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]:
        for name, part in alternative.get("properties", {}).items():
            yield from _fields(part, f"{path}.{name}" if path else name)
        extra = alternative.get("additionalProperties")
        if isinstance(extra, dict) and "properties" in extra:
            yield from _fields(extra, f"{path}.*")
        if "properties" in alternative.get("items", {}):
            yield from (each for each in _fields(alternative["items"], f"{path}[]") if each[0] != f"{path}[]")


def _kind(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(_kind(each) for each in several))
    kinds = schema.get("type", "any")
    told = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    return f"{told} of {_kind(schema['items'])}" if "items" in schema and "properties" not in schema["items"] else told


# --- the start page -------------------------------------------------------------------------------------------------------


def first_screen() -> str:
    """The README's picture and numbers."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- digits:.*?-->\n(.*?)<!-- end -->", readme, re.DOTALL)
    assert found is not None
    return found[1].replace("docs/images/", "images/").replace("<details>", '<details markdown="1">')


PARTS = {
    "first-screen": first_screen,
    "rules": rules_table,
    "remedies": remedies_table,
    "python": python_table,
    "imported": imported_table,
    "command-line": command_line_parts,
    "json": json_fields,
}
