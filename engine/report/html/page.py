"""The page: one HTML file with everything in it, which asks the network for nothing. Its text is in `report.html`."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...imaging.metrics import smoothed
from ...stage_results import StageResults
from .charts import Series, line_chart
from .pictures import crop_at, jpeg_address, marked, png_address, shared_tint, spread, tinted_holes
from .plan_view import VIEWS, draw_view, marker_positions, poses_of, scene_of
from .templates import templates_of
from .wipe import make_wipe

_CROP = (336, 216)
"""Largest width and height of a 1:1 crop, pixels of the delivered frame: three abreast, one on a phone."""
FILES = (
    ("video.mp4", "delivered"),
    ("generated.mp4", "the model's own picture"),
    ("anchor.mp4", "what the new camera sees"),
    ("mask.mp4", "white is footage"),
    ("side_by_side.mp4", "source and result"),
    ("contact.png", "contact sheet"),
    ("camera.json", "the path"),
    ("config.json", "all options"),
    ("report.json", "this page as numbers"),
)
"""What lies beside the page, with a word on each."""


def render_report(result: StageResults, facts: dict[str, Any], scratch: Path) -> str:
    """The report's HTML.

    Args:
        facts: of `collect_report`.
        scratch: a folder for the page's own small videos; they can be deleted afterwards.

    Raises:
        OutputError: the scratch folder cannot be written.
    """
    folder = Path(__file__).parent
    wipe = make_wipe(result, scratch)
    scene = scene_of(result)
    middle = len(result.source) // 2
    seams = [(_number(ratio), int(frame)) for frame, ratio in facts["measures"]["seam_ratios"]["delivered"].items()]
    templates = templates_of(folder)
    templates.filters |= {"spoken_time": spoken_time, "thousands": lambda count: f"{count:,}".replace(",", "\u202f")}
    return templates.get_template("report.html").render(
        facts,
        style=Markup((folder / "page.css").read_text("utf-8")),
        script=Markup((folder / "page.js").read_text("utf-8")),
        headline=_headline(facts["sentence"]),
        rate=f"{float(Fraction(facts['clip']['rate'])):.4g}",
        wipe=wipe,
        stills={
            "frame": middle,
            "new": jpeg_address(result.frames[middle], longest=960),
            "source": jpeg_address(result.source[middle], longest=960),
        },
        moments=_moments(result),
        plan=Markup("".join(draw_view(scene, view) for view in VIEWS)),
        boundaries=_boundaries(result, facts),
        largest_seam=dict(zip(("ratio", "frame"), max(seams), strict=True)) if seams else None,
        over_time=_over_time(facts),
        tuning_curves=_tuning_curves(facts),
        files=FILES,
        drawn={
            "frames": facts["clip"]["frames"],
            "shown": wipe.frames,
            "rate": float(result.request.info.rate),
            "poses": len(poses_of(facts["clip"]["frames"])),
            "marker": {view.name: marker_positions(scene, view) for view in VIEWS},
        },
    )


def spoken_time(seconds: float) -> str:
    """42.3 as "42 s", 215 as "3 min 35 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _headline(sentence: str) -> Markup:
    """The sentence with what must not break over two lines kept together."""
    words = sentence.replace(" %", "\u00a0%").split(" ")
    return Markup(" ").join(
        Markup("<span>{}</span>").format(word) if word.endswith("-parameter") else word for word in words
    )


def _moments(result: StageResults) -> list[dict[str, Any]]:
    return [
        {
            "frame": t,
            "missing_percent": 100 * (1 - float((result.provenance[t] > 0).mean())),
            "source": jpeg_address(result.source[t]),
            "anchor": jpeg_address(tinted_holes(result.anchor[t], result.validity_mask[t])),
            "generated": jpeg_address(result.generated[t]),
            "delivered": jpeg_address(result.frames[t]),
        }
        for t in spread(len(result.source), 3)
    ]


def _boundaries(result: StageResults, facts: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for place in facts["measures"]["worst_boundaries"]:
        t, x, y = place["frame"], place["x"], place["y"]
        frame = crop_at(result.frames[t], x, y, *_CROP)
        tinted = crop_at(
            marked(shared_tint(result.frames[t], result.generated_mask[t]), x, y, place["size"]), x, y, *_CROP
        )
        crops = {"crop": png_address(frame), "tinted": png_address(tinted), "width": frame.shape[1]}
        found.append({**place, **crops})
    return found


def _number(value: Any) -> float:
    """A number of the facts as a float again: null is NaN, "inf" infinity."""
    return float("nan" if value is None else value)


def _over_time(facts: dict[str, Any]) -> Markup:
    measured = facts["measures"]
    changes = measured["frame_change"]
    curves = [
        Series(label="source", values=changes["source"], style="ink", start=1),
        Series(label="delivered", values=changes["delivered"], style="accent", start=1),
        Series(label="generated", values=changes["generated"], style="soft", start=1),
    ]
    holes = Series(label="holes", values=facts["shares"]["holes_per_frame"], style="accent", shade=True)
    change = "Change from frame to frame, levels of 255"
    return Markup(
        line_chart(change, curves, x_label="frame", marks=measured["seams"], follow=True)
        + line_chart("Share of the picture in holes", [holes], x_label="frame", percent=True, follow=True)
    )


def _tuning_curves(facts: dict[str, Any]) -> Markup:
    parts = []
    for name, title in (
        ("spatial", "Spatial adapter: loss on source frames"),
        ("temporal", "Temporal adapter: masked loss"),
    ):
        losses = [_number(value) for value in facts["tuning"]["losses"].get(name, [])]
        if losses:
            raw = Series(label="each step", values=losses, style="faint", start=1)
            mean = Series(label="smoothed", values=smoothed(losses), style="accent", start=1)
            parts.append(line_chart(title, [raw, mean], x_label="step", log=True))
    return Markup("".join(parts))
