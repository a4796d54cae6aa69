"""What the site adds to the pages of `docs/`: files of the repository as pages, the command's reference, checked code.

MkDocs calls the functions named `on_...` (`hooks` in `mkdocs.yml`).
"""

import ast
import importlib
import json
import os
import re
import shlex
import textwrap
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.core import TyperCommand, TyperGroup

from recapture.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "engine/weights/README.md": "model-card.md",
    "examples/billboard.py": "billboard.md",
    "priors/README.md": "recipes.md",
}
"""Files of the repository that are pages of the site; links to them lead there."""

_ORIGINS = {page: file for file, page in PAGES.items()}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=_as_page(ROOT / source)))
    files.append(File.generated(config, "cli.md", content=command_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Check the page's code, and lead links to files of the repository to their pages.

    Raises:
        PluginError: a code block is wrong; the message names the page and the block.
    """
    for _indent, language, code in _FENCE.findall(markdown):
        try:
            check_code(language, textwrap.dedent(code))
        except (SyntaxError, ValueError, ImportError, AttributeError) as error:
            raise PluginError(f"{page.file.src_uri}: {error} in\n{code}") from error
    origin = _ORIGINS.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda link: _on_the_site(link, Path(origin)), markdown)


def _on_the_site(link: re.Match[str], origin: Path) -> str:
    """A link of a file of the repository, as the site has it: to a page, or plain text where the file is no page."""
    label, target = link.groups()
    path, _, anchor = target.partition("#")
    if not path or ":" in path:
        return link[0]
    file = os.path.normpath(origin.parent / path)
    if file in PAGES or file.startswith("docs/"):
        return f"[{label}]({PAGES.get(file, file.removeprefix('docs/'))}{'#' * bool(anchor)}{anchor})"
    return label if (ROOT / file).exists() else link[0]


def check_code(language: str, code: str) -> None:
    """Check that a block could work: Python compiles and its imports exist, commands and their options exist.

    Raises:
        SyntaxError, ValueError, ImportError, AttributeError: it could not.
    """
    if language == "python":
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "recapture":
                module = importlib.import_module(node.module)
                for name in node.names:
                    getattr(module, name.name)
    elif language == "json" and "..." not in code:
        json.loads(code)
    elif language == "sh":
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] in (["helm"], ["kubectl"]):  # whose releases and secrets are called so, too
                words = words[words.index("--") :] if "--" in words else []
            if "recapture" in words:
                check_command(words[words.index("recapture") + 1 :])


def check_command(words: list[str]) -> None:
    """Check that the command and each of its options exist.

    Raises:
        ValueError: names what does not.
    """
    command = typer.main.get_command(app)
    path = ["recapture"]
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            raise ValueError(f"{' '.join(path)} has no command {words[0]!r}")
        command, words = command.commands[words[0]], words[1:]
        path.append(command.name or "")
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    if unknown:
        raise ValueError(f"{' '.join(path)} has no option {unknown[0]}")


def command_reference() -> str:
    """Markdown with each command's help, arguments and options."""
    lines = ["# Command line", "", "`recapture COMMAND --help` prints the same."]
    _describe(typer.main.get_command(app), "recapture", lines)
    return "\n".join(lines) + "\n"


def _describe(command: TyperCommand | TyperGroup, name: str, lines: list[str]) -> None:
    context = command.make_context(name, [], resilient_parsing=True)
    if name != "recapture" and not isinstance(command, TyperGroup):
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["", f"## {name}", "", f"```text\n{name} {usage}\n```", "", _plain(command.help)]
        rows = [record for parameter in command.params if (record := parameter.get_help_record(context))]
        if rows:
            lines += ["", "| option | |", "| --- | --- |", *(f"| `{_cell(a)}` | {_cell(b)} |" for a, b in rows)]
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            if not child.hidden:
                _describe(child, f"{name} {child.name}", lines)


def _plain(text: str | None) -> str:
    return re.sub(r"\[/?(?:bold|dim|italic|cyan|green)\]", "", (text or "").replace("\b", ""))


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("\n", " ")


def _as_page(path: Path) -> str:
    text = path.read_text()
    return text if path.suffix == ".md" else f"# {path.relative_to(ROOT)}\n\n```python\n{text}```\n"
