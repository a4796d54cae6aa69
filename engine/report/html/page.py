"""The page: one HTML file with everything in it, which asks the network for nothing."""

import json
import math
import re
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ...imaging.metrics import smoothed
from ...stage_results import StageResults
from .charts import Series, line_chart
from .pictures import crop_at, jpeg_address, marked, png_address, shared_tint, spread, tinted_holes
from .plan_view import VIEWS, draw_view, marker_positions, poses_of, scene_of
from .tables import held_out_table, origin_list, size_text, stage_table
from .wipe import Wipe, make_wipe

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
        facts: of `gather`.
        scratch: a folder for the page's own small videos; they can be deleted afterwards.

    Raises:
        OutputError: the scratch folder cannot be written.
    """
    folder = Path(__file__).parent
    wipe = make_wipe(result, scratch)
    scene = scene_of(result)
    drawn = {
        "frames": facts["clip"]["frames"],
        "shown": wipe.frames,
        "rate": float(result.request.info.rate),
        "poses": len(poses_of(facts["clip"]["frames"])),
        "marker": {view.name: marker_positions(scene, view) for view in VIEWS},
    }
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        title=escape(f"{facts['clip']['name']} · {facts['camera']['text']} · ReCapture"),
        style=(folder / "page.css").read_text("utf-8"),
        script=(folder / "page.js").read_text("utf-8"),
        data=json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c"),
        clip_name=escape(facts["clip"]["name"]),
        camera=escape(facts["camera"]["text"]),
        sentence=re.sub(r"(\S+-parameter)", r"<span>\1</span>", escape(facts["sentence"]).replace(" %", "&nbsp;%")),
        share_label=escape(facts["sentence"], quote=True),
        generated_percent=f"{100 * facts['shares']['generated']:.2f}",
        headline_facts=escape(_headline(facts)),
        warnings=_notes([*facts["notes"], *facts["warnings"]]),
        wipe=_wipe(result, wipe, facts),
        working_size=size_text(*facts["working_size"]),
        times=_times(result),
        motion=escape(_motion(facts)),
        plan="".join(draw_view(scene, view) for view in VIEWS),
        worst=_worst(result, facts),
        steadiness=escape(_steadiness(facts)),
        over_time=_over_time(facts),
        tuning_lead=escape(_tuning_lead(facts)),
        tuning=_tuning(facts),
        held_out=held_out_table(facts["tuning"]["held_out"]),
        stages=stage_table(facts),
        origin=origin_list(facts),
        again=_again(facts),
    )


def _headline(facts: dict[str, Any]) -> str:
    clip = facts["clip"]
    rate = float(_fraction(clip["rate"]))
    took = spoken_time(facts["seconds"])
    other = 100 * facts["shares"]["other_frames"]
    borrowed = f", {other:.1f} % of the picture from other frames" if other >= 0.05 else ""
    size = size_text(clip["width"], clip["height"])
    return f"{size}, {clip['frames']} frames at {rate:.4g} fps{borrowed}, made in {took}"


def spoken_time(seconds: float) -> str:
    """42.3 as "42 s", 215 as "3 min 35 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def _notes(warnings: list[str]) -> str:
    if not warnings:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{escape(sentence)}</li>" for sentence in warnings) + "</ul>"


def _wipe(result: StageResults, wipe: Wipe, facts: dict[str, Any]) -> str:
    width, height = result.request.info.width, result.request.info.height
    middle = len(result.source) // 2
    stills = [jpeg_address(frames[middle], longest=960) for frames in (result.frames, result.source)]
    shown = "" if wipe.frames == facts["clip"]["frames"] else f" The first {wipe.frames} frames are shown here."
    small = "" if wipe.width >= width else f" Scaled to {size_text(wipe.width, wipe.height)} for this page."
    # As wide as the column, but never higher than the window nor enlarged past 1.75.
    limits = f"aspect-ratio:{width}/{height};max-width:min({width * 1.75:.0f}px,{82 * width / height:.1f}vh)"
    return (
        f'<div class="wipe" style="{limits}">'
        f'<img src="{stills[0]}" alt="Frame {middle} from the new camera">'
        f'<video src="{wipe.result}" muted playsinline preload="auto" aria-label="The clip from the new camera"></video>'
        f'<div class="before" style="position:absolute;inset:0">'
        f'<img src="{stills[1]}" alt="Frame {middle} of the source clip">'
        f'<video src="{wipe.source}" muted playsinline preload="auto" aria-label="The source clip"></video></div>'
        '<input type="range" min="0" max="100" step="0.5" value="50" aria-label="Divider between source and new camera">'
        '<span class="divider"></span><span class="tag left">source</span><span class="tag right">new camera</span></div>'
        '<div class="controls" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{wipe.frames - 1}" step="1" value="0" aria-label="Frame"><output></output></div>'
        f'<p class="lead" style="margin-top:10px">Drag the divider, or move it with the arrow keys.{shown}{small} '
        'The delivered file is <a href="video.mp4">video.mp4</a>.</p>'
    )


def _times(result: StageResults) -> str:
    groups = []
    for t in spread(len(result.source), 3):
        hole = 100 * (1 - float((result.evidence[t] > 0).mean()))
        pictures = (
            ("source", result.source[t], f"Source frame {t}"),
            (
                f"seen, {hole:.1f}&nbsp;% missing",
                tinted_holes(result.anchor[t], result.mask[t]),
                f"Anchor of frame {t}",
            ),
            ("generated", result.generated[t], f"Generated frame {t}"),
            ("delivered", result.frames[t], f"Delivered frame {t}"),
        )
        shape = f"aspect-ratio:{result.source.shape[2]}/{result.source.shape[1]}"
        figures = "".join(
            f'<figure><img src="{jpeg_address(picture)}" alt="{alt}" style="{shape}"><figcaption>{label}</figcaption></figure>'
            for label, picture, alt in pictures
        )
        groups.append(f'<div><h3>Frame {t}</h3><div class="four">{figures}</div></div>')
    return "".join(groups)


def _motion(facts: dict[str, Any]) -> str:
    camera, lens = facts["camera"], facts["intrinsics"]
    turn, move = camera["largest_turn_deg"], camera["largest_move_median_depths"]
    if turn < 0.05 and move < 1e-3:
        moved = "The new camera stays where the source camera is."
    else:
        moved = (
            f"At most {turn:.1f}° turned and {move:.2f} median depths away from the source camera of the same moment."
        )
    return f"{moved} Points are the middle frame's depth. Field of view {lens['fov_deg']:.1f}° ({lens['source_says']})."


def _worst(result: StageResults, facts: dict[str, Any]) -> str:
    places = facts["measures"]["worst_boundaries"]
    if not places:
        return "<p>No frame joins real and generated pixels.</p>"
    parts = []
    for rank, place in enumerate(places, 1):
        t, x, y = place["frame"], place["x"], place["y"]
        frame = crop_at(result.frames[t], x, y, *_CROP)
        tinted = crop_at(marked(shared_tint(result.frames[t], result.matte[t]), x, y, place["size"]), x, y, *_CROP)
        parts.append(
            f"<figure><figcaption><b>{place['step']:.1f}</b> levels, frame {t}, at {x}, {y}</figcaption>"
            f'<div class="crops"><img src="{png_address(frame)}" width="{frame.shape[1]}" alt="Boundary {rank} in frame {t}">'
            f'<img src="{png_address(tinted)}" width="{frame.shape[1]}" '
            f'alt="The same crop, tinted where generated, the patch framed"></div></figure>'
        )
    return "".join(parts)


def number(value: Any, digits: int = 3) -> float:
    """A number of the facts as a float again: null is NaN, "inf" infinity."""
    return round(float("nan" if value is None else value), digits)


def _steadiness(facts: dict[str, Any]) -> str:
    measured = facts["measures"]
    flicker = ", ".join(f"{name} {100 * number(value, 6):.2f}\u00a0%" for name, value in measured["flicker"].items())
    said = f"Steadiness (255 minus the mean change, over 255): {flicker}."
    ratios = [(number(r), int(f)) for f, r in measured["seam_ratios"]["delivered"].items()]
    if ratios:
        ratio, frame = max(ratios)
        said += (
            f" {len(ratios)} window seams; at the largest, frame {frame}, the picture changes {ratio:.2f} times as much"
        )
        return said + " as around it (1 is no seam)."
    return said + " One window, no seam."


def _over_time(facts: dict[str, Any]) -> str:
    measured = facts["measures"]
    changes = measured["frame_change"]
    seams = measured["seams"]
    curves = [
        Series(label="source", values=changes["source"], style="ink", start=1),
        Series(label="delivered", values=changes["delivered"], style="accent", start=1),
        Series(label="generated", values=changes["generated"], style="soft", start=1),
    ]
    holes = facts["shares"]["holes_per_frame"]
    return line_chart(
        "Change from frame to frame, levels of 255", curves, x_label="frame", marks=seams, follow=True
    ) + line_chart(
        "Share of the picture in holes",
        [Series(label="holes", values=holes, style="accent", shade=True)],
        x_label="frame", percent=True, follow=True,
    )  # fmt: skip


def _tuning_lead(facts: dict[str, Any]) -> str:
    steps = facts["tuning"]["steps"]
    psnr = number(facts["measures"]["generated_psnr_visible_db"])
    close = (
        "exactly"
        if math.isinf(psnr)
        else "not at all (nothing is visible)"
        if math.isnan(psnr)
        else f"to {psnr:.1f} dB"
    )
    done = f"{steps['spatial']} steps of the spatial adapter, {steps['temporal']} of the temporal one"
    done += "." if facts["tuning"]["warm_start"] is None else ", begun from the adapter of another path of this clip."
    return f"{done} Where the new camera sees footage, the generated picture matches it {close} (PSNR at the working size)."


def _tuning(facts: dict[str, Any]) -> str:
    parts = []
    for name, title in (
        ("spatial", "Spatial adapter: loss on source frames"),
        ("temporal", "Temporal adapter: masked loss"),
    ):
        losses = [number(value, 9) for value in facts["tuning"]["losses"].get(name, [])]
        if losses:
            raw = Series(label="each step", values=losses, style="faint", start=1)
            mean = Series(label="smoothed", values=smoothed(losses), style="accent", start=1)
            parts.append(line_chart(title, [raw, mean], x_label="step", log=True))
    return "".join(parts)


def _again(facts: dict[str, Any]) -> str:
    rest = ""
    if facts["command_leaves_out"]:
        names = ", ".join(escape(name) for name in facts["command_leaves_out"])
        rest = f'<p class="files">{names}: no flag of their own; add --config config.json.</p>'
    if facts["given"]:
        names = ", ".join(escape(name) for name in facts["given"])
        rest += f'<p class="files">Results of your own, to be given again: {names}.</p>'
    beside = ", ".join(f'<a href="{name}">{name}</a> ({escape(about)})' for name, about in FILES)
    return (
        f"<pre><code>{escape(facts['command'])}</code></pre>{rest}"
        f'<p class="files">Beside this page: {beside}.</p><footer>Written {escape(facts["created_at"])}</footer>'
    )
