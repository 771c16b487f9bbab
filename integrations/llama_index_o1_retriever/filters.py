"""LlamaIndex's metadata filters in the language of our index."""

from __future__ import annotations

from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from o1_retriever.errors import SettingsError

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
}
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or"}


def as_where(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """The filter as `Index.search` takes it. Raises `SettingsError` for what the index cannot do."""
    if filters is None or not filters.filters:
        return None
    condition = filters.condition or FilterCondition.AND
    if condition not in _CONDITIONS:
        raise SettingsError(
            f"The filter condition is {condition.value!r}; expected one of {_names(_CONDITIONS)}."
        )
    parts = [part for each in filters.filters if (part := _part(each)) is not None]
    if len(parts) < 2:
        return parts[0] if parts else None
    return {_CONDITIONS[condition]: parts}


def _part(each: MetadataFilter | MetadataFilters) -> dict[str, Any] | None:
    if isinstance(each, MetadataFilters):
        return as_where(each)
    if each.operator not in _OPERATORS:
        raise SettingsError(
            f"The filter on {each.key!r} has the operator {each.operator.value!r}; expected one of "
            f"{_names(_OPERATORS)}."
        )
    return {each.key: {_OPERATORS[each.operator]: each.value}}


def _names(known: Any) -> str:
    return ", ".join(each.value for each in known)
