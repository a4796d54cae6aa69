"""A contract for import-linter: no module of a package imports itself through others, whatever the folders."""

from typing import Any, cast

from grimp import ImportGraph
from importlinter.application import contract_utils, output
from importlinter.application.contract_utils import AlertLevel
from importlinter.domain import fields
from importlinter.domain.contract import Contract, ContractCheck


class Acyclic(Contract):
    """Imports for types only count too: a circle of types joins modules as firmly as one of code."""

    type_name = "acyclic"

    package = fields.StringField()
    ignore_imports = fields.SetField(subfield=fields.ImportExpressionField(), required=False)
    unmatched_ignore_imports_alerting = fields.EnumField(AlertLevel, default=AlertLevel.ERROR)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Find a shortest circle through each import that is part of one."""
        settings = cast(Any, self)
        removal = contract_utils.remove_ignored_imports_and_report(
            graph=graph,
            ignore_imports=settings.ignore_imports,
            unmatched_alerting=settings.unmatched_ignore_imports_alerting,
        )
        package = settings.package
        inside = {module for module in graph.modules if module == package or module.startswith(f"{package}.")}
        circles: dict[frozenset[str], tuple[str, ...]] = {}
        for importer in sorted(inside):
            for imported in sorted(graph.find_modules_directly_imported_by(importer) & inside):
                back = graph.find_shortest_chain(importer=imported, imported=importer)
                if back is not None:
                    circles.setdefault(frozenset(back), (importer, *back))
        return ContractCheck(
            kept=not circles, warnings=list(removal.warnings), metadata={"circles": sorted(circles.values())}
        )

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each circle on a line."""
        for circle in check.metadata["circles"]:
            output.print_error(" -> ".join(circle))
