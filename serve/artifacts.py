"""The files of a finished render, by the name that callers use."""

CONTENT = {
    "video": ("video.mp4", "video/mp4"),
    "generated": ("generated.mp4", "video/mp4"),
    "anchor": ("anchor.mp4", "video/mp4"),
    "mask": ("mask.mp4", "video/mp4"),
    "side_by_side": ("side_by_side.mp4", "video/mp4"),
    "contact": ("contact.png", "image/png"),
    "camera": ("camera.json", "application/json"),
    "config": ("config.json", "application/json"),
    "report": ("report.json", "application/json"),
    "page": ("report.html", "text/html; charset=utf-8"),
}
