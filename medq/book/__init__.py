"""What the pages of the book call, and the little that a build needs besides.

`show` turns figures and tables into numbered ones with their data to download, and knows the repository's
address. `pages` and `verdicts` compute what single pages say, `cells` the map of all cells and the pages of
the chosen ones.
"""

from medq.book.cells import (
    cell_classes,
    cell_files,
    cell_head,
    cell_layers,
    cell_numbers,
    cell_reliability,
    cell_training,
    matrix,
    page_name,
    write_cell_pages,
)
from medq.book.pages import (
    balance,
    balance_figure,
    banner,
    batch_norm_reading,
    batch_norm_sizes,
    conditions,
    example,
    fold_table,
    kernel_sweep,
    layers,
    limits,
    packages,
    phantom_figure,
    provenance,
    relu6_demonstration,
    selection_optimism,
    selection_reading,
    sources,
)
from medq.book.show import (
    ASSETS,
    asset,
    binder_url,
    colab_url,
    config,
    dark,
    download,
    each_dataset,
    figure,
    files,
    fingerprint,
    image_size,
    in_repository,
    interactive,
    joined,
    repository_url,
    table,
    text,
)
from medq.book.verdicts import (
    advice,
    advice_reading,
    advice_table,
    checks,
    claims_table,
    experiments,
    verdict_summary,
    verdicts,
)

__all__ = [name for name in dir() if not name.startswith("_")]
