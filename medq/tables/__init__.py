"""Every table, and the numbers behind every figure: pure functions of a result folder that return a DataFrame.

`show(name, results)` prints one of `TABLES`; `data(name, results)` returns its numbers, one row each. Tables 1 to 4
hold `ours` with its 95 % interval `low` to `high` beside `paper`; `state` says in words what is missing,
unsupported or doubtful.
"""

from medq.changes import changes
from medq.tables.about import balance, batch_norm_sizes, channels, of_cell, selection
from medq.tables.attention import attention
from medq.tables.beyond import COLLAPSE, VARIANTS, advice, beside_variant, disturbed, engine_check
from medq.tables.beyond import equal_recipe, flips, leak, leak_effect, other_models, peers, qat_control, recipe_means
from medq.tables.beyond import recipes_against_table1, recommended, remedies, silent, smallest_change, worst_layers
from medq.tables.catalogue import TABLES, data, show
from medq.tables.entries import DISAGREES, PAPER_REGIMES, comparable
from medq.tables.html import STYLE, Look, grid, to_html
from medq.tables.paper import speedups, table1, table2, table3, table4
from medq.tables.plotted import PAIRS, calibration_data, forest_data, latency_data, regimes_data, reliability_bins
from medq.tables.plotted import reliability_data, tradeoff_data

__all__ = [name for name in dir() if not name.startswith("_")]
