"""Tables 1 to 4 in the paper's own layout, and the tables beyond it: pure functions of a result folder.

A table beside the paper has two levels of columns: the paper's column, and a field of `FIELDS`. `ours` with
its 95 % interval `low` .. `high` stands beside `paper`; `state` says in words what is missing, unsupported
or doubtful. `show` renders any table as HTML, and `data` returns what lies behind each table and figure,
one row per number.
"""

from medq.tables.behind import (DATA, PAIRS, calibration_data, data, forest_data, latency_data, regimes_data,
                                reliability_data, tradeoff_data)
from medq.tables.beyond import (COLLAPSE, FACTORS, GAP, VARIANTS, ablation, ablation_means, beside_variant, coverage,
                                engine_check, flips, leak, peers, qat_control, recipe_means, recommended, remedies,
                                silent, worst_layers)
from medq.tables.entries import DISAGREES, FIELDS, PAPER_REGIMES, cell_state, is_outside, mean_state
from medq.tables.html import STATUS, STYLE, show
from medq.tables.paper import (TABLE2, TABLE4, latency_rows, speedups, table1, table1_data, table2,
                               table2_data, table3, table3_data, table4, table4_data)

__all__ = ["COLLAPSE", "DATA", "DISAGREES", "FACTORS", "FIELDS", "GAP", "PAIRS", "PAPER_REGIMES", "STATUS",
           "STYLE", "TABLE2", "TABLE4", "VARIANTS", "ablation", "ablation_means", "beside_variant", "calibration_data",
           "cell_state",
           "coverage", "data", "engine_check", "flips", "forest_data", "is_outside", "latency_data",
           "latency_rows", "leak", "mean_state", "peers", "qat_control", "recipe_means", "regimes_data",
           "recommended", "reliability_data", "remedies", "show", "silent", "speedups", "table1", "table1_data", "table2",
           "table2_data", "table3", "table3_data", "table4", "table4_data", "tradeoff_data", "worst_layers"]
