"""One self-contained page of any number of result folders, and the same charts as files.

rows.py        result folders → runs: their rows, commands and what is wrong with them
compared.py    rows of `compare` → points: index, setting and head, and the means over heads
decoded.py     rows of `decode` → points: index, k and task
agreement.py   both together: what an index scored offline against what it did online
figure.py      a figure: a chart by Vega-Altair, the rows behind it, what can be chosen
theme.py       colours, shapes and type, light and dark
charts/        one module a family of figures
page.py        the page; page.html, page.css and page.js are its parts
export.py      the figures as SVG and PNG
writing.py     the whole: `write_report`
"""

from __future__ import annotations

import importlib.util

from ra_bench.errors import UsageError

LIBRARIES = {"altair": "altair", "vl_convert": "vl-convert-python"}


def require_report() -> None:
    """Raises UsageError where the libraries of the extra `report` are not installed."""
    missing = [name for module, name in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} not installed; pip install 'ra-bench[report]'")
