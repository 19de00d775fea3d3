"""Every table, and the numbers behind every figure: pure functions of a result folder that return a DataFrame.

`show(name, results)` prints one of `TABLES`; `data(name, results)` returns its numbers, one row each. Tables 1 to 4
hold `ours` with its 95 % interval `low` to `high` beside `paper`; `state` says in words what is missing,
unsupported or doubtful.
"""

from medq.tables.about import balance, batch_norm_sizes, channels, of_cell, selection
from medq.tables.attention import attention
from medq.tables.beyond import COLLAPSE, FACTORS, GAP, VARIANTS, ablation, advice, beside_variant, disturbed
from medq.tables.beyond import engine_check, equal_recipe, flips, leak, leak_effect, other_models, peers, qat_control
from medq.tables.beyond import recipe_means, recipes_against_table1, recommended, remedies, silent, worst_layers
from medq.tables.catalogue import TABLES, Shown, data, show
from medq.changes import SCORES, changes
from medq.tables.entries import DISAGREES, FIELDS, PAPER_REGIMES, cell_state, comparable, is_outside, mean_state
from medq.tables.html import STATUS, STYLE, Look, VERDICTS, grid, to_html
from medq.tables.paper import latency_rows, speedups, table1, table2, table3, table4
from medq.tables.plotted import PAIRS, calibration_data, forest_data, latency_data, regimes_data, reliability_bins
from medq.tables.plotted import reliability_data, tradeoff_data

__all__ = [name for name in dir() if not name.startswith("_")]
