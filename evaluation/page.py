"""An evaluation's pages: OUT/summary.md, and OUT/index.html with the pictures beside the numbers."""

from collections.abc import Sequence
from pathlib import Path

from ..engine.report.html.templates import templates_of
from ..engine.store.durable import write_synced
from .statistics import Line
from .tables import labels, summary


def write_summary(lines: Sequence[Line], out: Path, about: str) -> None:
    """Write summary.md and index.html.

    Args:
        lines: of the evaluation, with `pictures` relative to `out`.
        about: one sentence: what was evaluated.
    """
    tables = summary(lines)
    write_synced(out / "summary.md", (f"{about}\n\n" + "\n".join(table.markdown() for table in tables)).encode())
    clips: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for line in lines:
        scene, path = line["scene"], line["path"]
        pictures = clips.setdefault((scene, path), [(f"pictures/{scene}-{path}.webp", "truth")])
        pictures.append((line["pictures"], _caption(line)))
    template = templates_of(Path(__file__).parent).get_template("index.html")
    page = template.render(about=about, tables=tables, clips=[(*clip, pictures) for clip, pictures in clips.items()])
    write_synced(out / "index.html", page.encode())


def _caption(line: Line) -> str:
    name = ", ".join(label for label in labels((line["row"], line["depth"], line["vary"])) if label)
    psnr = next((value for metric, value in line.items() if metric.startswith("psnr_all_")), None)
    return name if psnr is None else f"{name}: {psnr:.2f} dB"
