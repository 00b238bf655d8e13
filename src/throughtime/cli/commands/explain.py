"""`throughtime explain`: a rule's text."""

from __future__ import annotations

import click


@click.command()
@click.argument("code", required=False)
def explain(code: str | None) -> None:
    """What a rule means, why it matters and what helps. Without CODE: all rules."""
    from throughtime.diagnosis.rule import registry
    from throughtime.errors import InputError

    rules = registry()
    if code is None:
        for rule in rules.values():
            click.echo(f"{rule.code}  {rule.name}{'  (preview)' if rule.preview else ''}")
        return
    if code.upper() not in rules:
        raise InputError(f"the code {code!r}", f"one of {', '.join(rules)}", "throughtime explain lists them")
    rule = rules[code.upper()]
    click.echo(f"{rule.code} {rule.name}  [{'preview' if rule.preview else rule.severity}]\n\n{rule.text()}")
