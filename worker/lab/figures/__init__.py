"""Figures: functions of numpy arrays and plain values that return PNG bytes.

They do not use matplotlib's global state, so a long-lived worker leaks no figures. Equal input gives equal bytes.
Import this package where a figure is drawn, not at the top of a module: matplotlib is slow to import.
"""

from worker.lab.figures.curves import curves
from worker.lab.figures.images import dataset_sheet, samples
from worker.lab.figures.inputs import suspicion_histogram
from worker.lab.figures.isolation import loss_histogram, ranking
from worker.lab.figures.predictions import predictions
from worker.lab.figures.rows import image_rows
from worker.lab.figures.sweep import sweep
from worker.lab.figures.table import results_table

__all__ = [
    "curves",
    "dataset_sheet",
    "image_rows",
    "loss_histogram",
    "predictions",
    "ranking",
    "results_table",
    "samples",
    "suspicion_histogram",
    "sweep",
]
