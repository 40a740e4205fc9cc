"""Boxes of the lineage and readings of them, in Dagster's words."""

from __future__ import annotations

from typing import Any

import dagster as dg

from recs_platform.lineage import Key, Lineage, LineageColumn, Node, Place
from recs_platform.pipeline import Kind, Relation
from recs_platform.readings import Reading
from recs_platform.serving import keys
from recs_platform.settings import project_root

GROUP = "recommendations"  # one: the UI folds groups up, and draws a single one as the whole graph at once
OURS, THEIRS = "team:recommendations", "team:shop"

Metadata = dict[str, dg.MetadataValue[Any]]


def asset_spec(node: Node, lineage: Lineage) -> dg.AssetSpec:
    """A topic or catalog table as an external asset, a relation as one that a run deploys."""
    relation = node.relation
    return dg.AssetSpec(
        dg.AssetKey(node.key),
        deps=[dg.AssetKey(key) for key in node.upstreams],
        description=_markdown(node.description),
        group_name=GROUP,
        tags={"recs/kind": node.kind},
        kinds=set(node.kinds),
        owners=[OURS if relation else THEIRS],
        metadata={**_column_metadata(node, lineage), **(_relation_metadata(relation) if relation else {})},
        code_version=relation.fingerprint if relation else None,
        skippable=relation is not None,
    )


def reading_metadata(reading: Reading) -> Metadata:
    """Numbers as numbers, so that Dagster plots them over time."""
    found: Metadata = {name: dg.MetadataValue.text(text) for name, text in reading.state.items()}
    for name, number in reading.numbers.items():
        label = "dagster/row_count" if name == "rows" else name
        found[label] = dg.MetadataValue.int(number) if isinstance(number, int) else dg.MetadataValue.float(number)
    if reading.changed_at:
        found["changed_at"] = dg.MetadataValue.timestamp(reading.changed_at)
    return found


def _column_metadata(node: Node, lineage: Lineage) -> Metadata:
    if not node.columns:
        return {}
    key = node.relation.key if node.relation else ()
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            _whence(node.key, column, lineage),
            constraints=dg.TableColumnConstraints(other=["key"]) if column.name in key else None,
        )
        for column in node.columns
    ]
    deps = {
        column.name: [dg.TableColumnDep(dg.AssetKey(key), name) for key, name in column.sources]
        for column in node.columns
        if column.sources
    }
    found: Metadata = {"dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns))}
    if deps:
        found["dagster/column_lineage"] = dg.MetadataValue.column_lineage(dg.TableColumnLineage(deps))
    return found


def _whence(key: Key, column: LineageColumn, lineage: Lineage) -> str | None:
    """Where a column's values come from, in a line: the open-source UI draws no column lineage."""
    direct, last = set(column.sources), lineage.origins((key, column.name))
    if not direct:
        return None
    line = f"from {_listed(direct)}"
    return line if direct == last else f"{line}; at first {_listed(last)}"


def _listed(places: set[Place] | frozenset[Place]) -> str:
    return ", ".join(f"`{'/'.join(key)}.{name}`" for key, name in sorted(places))


def _markdown(text: str) -> str | None:
    """Dagster reads descriptions as Markdown, where `<user id>` would be a tag that nobody sees."""
    return text.replace("<", r"\<") or None


def _relation_metadata(relation: Relation) -> Metadata:
    found: Metadata = {
        "dagster/relation_identifier": dg.MetadataValue.text(relation.name),
        "sql": dg.MetadataValue.md(f"```sql\n{relation.text.strip()}\n```"),
        "file": dg.MetadataValue.path(_place_of(relation)),
    }
    if relation.kind is Kind.SINK:
        name = relation.redis_name
        found["redis_keys"] = dg.MetadataValue.text(f"{keys.prefix(name, relation.fingerprint)}*")
        found["redis_pointer"] = dg.MetadataValue.text(keys.pointer(name))
    return found


def _place_of(relation: Relation) -> str:
    root = project_root()
    return str(relation.path.relative_to(root) if relation.path.is_relative_to(root) else relation.path)
