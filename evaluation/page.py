"""An evaluation's pages: OUT/summary.md, and OUT/index.html with the pictures beside the numbers."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..engine.store.durable import write_synced
from .statistics import Line
from .tables import Table, labels, summary

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th { font-weight: 600; vertical-align: bottom; max-width: 8rem } td:first-child, td:nth-child(2) { text-align: left }
figure { margin: 0 0 .8rem } img { width: 100%; max-width: 1536px; display: block } .wide { overflow-x: auto }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } th, td { border-color: #444 } }
"""


def write_summary(lines: Sequence[Line], out: Path, about: str) -> None:
    """Write summary.md and index.html.

    Args:
        lines: of the evaluation, with `pictures` relative to `out`.
        about: one sentence: what was evaluated.
    """
    tables = summary(lines)
    write_synced(out / "summary.md", (f"{about}\n\n" + "\n".join(table.markdown() for table in tables)).encode())
    body = [f"<h1>ReCapture against ground truth</h1><p>{escape(about)}</p>"]
    body += [_table(table) for table in tables]
    for scene, path in dict.fromkeys((line["scene"], line["path"]) for line in lines):
        body.append(f"<h2>{escape(scene)}, {escape(path)}</h2>")
        body.append(_figure(f"pictures/{scene}-{path}.webp", "truth"))
        for line in lines:
            if (line["scene"], line["path"]) == (scene, path):
                name = ", ".join(label for label in labels((line["row"], line["depth"], line["vary"])) if label)
                psnr = next((v for k, v in line.items() if k.startswith("psnr_all_")), None)
                body.append(_figure(line["pictures"], name + (f": {psnr:.2f} dB" if psnr is not None else "")))
    page = (
        f"<!doctype html><meta charset=utf-8><title>ReCapture, evaluation</title><style>{STYLE}</style>{''.join(body)}"
    )
    write_synced(out / "index.html", page.encode())


def _table(table: Table) -> str:
    title = f"<h2>{escape(table.title)}</h2>" if table.title else ""
    head = "".join(f"<th>{escape(cell)}" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in table.rows)
    return f"{title}<div class=wide><table><tr>{head}{rows}</table></div>"


def _figure(source: str, caption: str) -> str:
    return f'<figure><figcaption>{escape(caption)}</figcaption><img loading="lazy" src="{escape(source)}"></figure>'
