"""Numbers in; tables for people out, as text, Markdown and LaTeX."""

from tsflora.analysis.tables.costs import (
    headline_numbers,
    headline_table,
    latency_table,
    paper_deployment,
    table_one,
    table_one_numbers,
    table_two,
)
from tsflora.analysis.tables.methods import accuracy_table, difference_table, traffic_table
from tsflora.analysis.tables.plans import plans_table
from tsflora.analysis.tables.sweeps import selection_table
from tsflora.analysis.tables.theory import bounds_table, plan_table, ranking
from tsflora.analysis.tables.writers import write_table

__all__ = [
    "accuracy_table",
    "bounds_table",
    "difference_table",
    "headline_numbers",
    "headline_table",
    "latency_table",
    "paper_deployment",
    "plan_table",
    "plans_table",
    "ranking",
    "selection_table",
    "table_one",
    "table_one_numbers",
    "table_two",
    "traffic_table",
    "write_table",
]
