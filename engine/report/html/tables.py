"""The report's tables."""

from html import escape
from typing import Any

_HELD_OUT = {
    "none": "neither adapter",
    "spatial": "spatial",
    "temporal": "temporal",
    "spatial+temporal": "both",
}


def size_text(width: int, height: int) -> str:
    """A picture's size in pixels, for a reader."""
    return f"{width} \N{MULTIPLICATION SIGN} {height}"


def held_out_table(losses: dict[str, float]) -> str:
    """Masked loss on noise that training never saw, with each adapter on and off; nothing where nothing was tuned."""
    if not losses:
        return ""
    base = losses["none"]
    rows = "".join(
        f'<tr><th scope="row">{label}</th><td class="number">{losses[name]:.4f}</td>'
        f'<td class="number">{_change(losses[name], base) if name != "none" else ""}</td></tr>'
        for name, label in _HELD_OUT.items()
    )
    return (
        '<div class="scroll narrow"><table><caption>Held-out masked loss</caption>'
        '<thead><tr><th scope="col">adapters on</th><th scope="col" class="number">loss</th>'
        f'<th scope="col" class="number">change</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _change(value: float, base: float) -> str:
    change = 100 * (value / base - 1) if base else 0.0
    return f"{'+' if change >= 0 else '&minus;'}{abs(change):.2f}&nbsp;%"


def stage_table(facts: dict[str, Any]) -> str:
    """Seconds of each stage, and whether it ran or was taken from the store."""
    stages = facts["stages"]
    longest = max((stage["seconds"] for stage in stages), default=0) or 1
    rows = []
    for stage in stages:
        width = 100 * stage["seconds"] / longest
        rows.append(
            f'<tr{" class=reused" if stage["reused"] else ""}><th scope="row">{escape(stage["name"])}</th>'
            f'<td class="what">{escape(stage["about"])}</td><td>{"reused" if stage["reused"] else "run"}</td>'
            f'<td class="bar"><span style="width:{width:.1f}%"></span></td>'
            f'<td class="number">{stage["seconds"]:.1f} s</td></tr>'
        )
    saved = sum(stage["seconds"] for stage in stages if stage["reused"])
    note = f"Reused stages cost nothing this time; they had taken {saved:.1f} s." if saved else ""
    return (
        '<div class="scroll"><table class="stages"><thead><tr><th scope="col">stage</th><th scope="col" class="what">what</th>'
        '<th scope="col"></th><th scope="col" class="bar"></th><th scope="col" class="number">time</th></tr></thead>'
        f'<tbody>{"".join(rows)}</tbody><tfoot><tr><th scope="row">in all</th><td class="what"></td><td></td>'
        f'<td class="bar"></td><td class="number">{facts["seconds"]:.1f} s</td></tr></tfoot></table></div>'
        f'<p class="files">{note}</p>'
    )


def origin_list(facts: dict[str, Any]) -> str:
    """Models, clip, lens, seed and versions."""
    clip, lens = facts["clip"], facts["intrinsics"]
    first = "" if not clip["first_frame"] else f", from frame {clip['first_frame']} of the file"
    rate = clip["rate"].removesuffix("/1")
    rows: list[tuple[str, str, str]] = [
        (
            "Clip",
            clip["name"],
            f"{size_text(clip['width'], clip['height'])}, {clip['frames']} of {clip['frames_in_file']} frames{first}, "
            f"{rate} fps, {clip['codec']} {clip['pix_fmt']}, {'with' if clip['has_audio'] else 'no'} sound. "
            f"sha256 {clip['sha256']}",
        ),
        ("Camera", facts["camera"]["text"], "camera.json holds each frame's pose and lens"),
        ("Anchor", facts["anchor"]["route"], facts["anchor"]["why"]),
        (
            "Lens",
            f"{lens['fov_deg']:.2f}° horizontal field of view, focal length {lens['K_px'][0][0]:.1f} px",
            lens["source_says"],
        ),
    ]
    for model in facts["models"]:
        size = "" if model["parameters"] is None else f", {model['parameters']:,} parameters".replace(",", "\u202f")
        size = size.replace("\u202f ", ", ", 1)
        digests = ", ".join(f"{name} {digest}" for name, digest in model["digests"].items())
        rows.append(
            (
                f"{model['role'].capitalize()} model",
                f"{model['name']} ({model['source']}){size}",
                f"Licence: {model['licence']}. sha256: {digests}",
            )
        )
    rows += [
        ("Seed", str(facts["seed"]), "of everything random"),
        ("Device", facts["device"], ""),
        ("Versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items()), ""),
    ]
    return (
        "<dl>"
        + "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(more)}</small>' if more else ''}</dd>"
            for name, value, more in rows
        )
        + "</dl>"
    )
