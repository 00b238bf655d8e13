"""Make the README's numbers and picture, and the list in docs/explore.md: `make readme`. All is computed here and now."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from throughtime.diagnosis.report import Report
from throughtime.explorer.page import presets
from throughtime.progress import bar
from throughtime.report.firstscreen import main_layer, picture
from throughtime.report.headline import headline
from throughtime.report.notation import from_log10
from throughtime.tasks.demos import digits_report

ROOT = Path(__file__).parent.parent
PICTURE = Path("docs/images/needed-and-reached.svg")


def first_screen(report: Report) -> str:
    """The README's first screen."""
    layer, done = main_layer(report), report.verification
    assert report.after is not None
    assert done is not None
    lag = report.needed[0].farthest
    assert lag is not None
    treated = report.after.layers[layer.name]
    now, then = (from_log10(each.log10_arriving[lag]) for each in (layer, treated))
    lines = "\n".join(f"{label:>8}  {sentence}" for label, sentence in headline(report))
    return f"""
![Supply and demand over the lag: what is left of the gradient, with and without chrono initialisation, and the lags that the
loss asks for]({PICTURE})

A GRU of {layer.hidden_size} units reads the 8 rows of a handwritten digit, then 92 steps of noise, and must then say which
digit it was. The loss depends on lags {report.needed[0].lags[0]}–{lag} (found from one batch, before training);
**{now}** of the gradient arrives at lag {lag}. Two lines later it is **{then}**:

```python
import throughtime as tt
tt.init.chrono_(model.rnn, max_lag={lag + 1})
```

and test accuracy after {done.steps} training steps goes from **{done.before.mean():.2f}** (chance is .10) to
**{done.after.mean():.2f}**: mean of {len(done.seeds)} paired trainings, difference {done.difference:.2f}, 95 % interval
{done.low:.2f} to {done.high:.2f}.

<details><summary>What <code>throughtime demo</code> prints</summary>

```
{_wrapped(lines)}
```

</details>
"""


def explorer_page(page: str) -> str:
    """docs/explore.md with its list of examples."""
    rows = [f"| `{each['id']}` | {each['title']} | {each['sentence'].replace('|', '&#124;')} |" for each in presets()]
    table = "\n".join(["", "| id | example | what it shows |", "|---|---|---|", *rows, ""])
    block = re.compile(r"(<!-- presets:.*?-->\n).*?(<!-- end -->)", re.S)
    return block.sub(lambda found: found[1] + table + "\n" + found[2], page)


def _wrapped(text: str, width: int = 110) -> str:
    """Long lines broken, their rest under the sentence."""
    return "\n".join(
        "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * 10)) if len(line) > width else line
        for line in text.splitlines()
    )


def main() -> None:
    """Write them all."""
    explorer = ROOT / "docs/explore.md"
    explorer.write_text(explorer_page(explorer.read_text(encoding="utf-8")), encoding="utf-8")
    with bar() as tell:
        report = digits_report(tell)
    (ROOT / PICTURE).write_text(str(picture(report, main_layer(report), 720, standalone=True)), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.compile(r"(<!-- digits:.*?-->\n).*?(<!-- end -->)", re.S)
    readme = block.sub(lambda found: found[1] + first_screen(report) + "\n" + found[2], readme)
    (ROOT / "README.md").write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
