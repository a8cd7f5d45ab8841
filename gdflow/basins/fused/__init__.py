"""The fused engine: starts go from their beginning to their verdict in one compiled loop, instead of step by step through XLA.

It runs what the batch engine of `gdflow.basins.lanes` runs, for linear networks with the squared error and narrow layers, by
explicit Runge–Kutta methods, with verdicts by levels; all else, and where there is no compiler, is left to that engine. Labels,
statuses and numbers of steps are the same, times up to round-off. The variable `GDFLOW_ENGINE` chooses: `auto`, `fused`, `xla`.
"""

from gdflow.basins.fused.build import NoCompiler as NoCompiler
from gdflow.basins.fused.engine import run_fused as run_fused
from gdflow.basins.fused.engine import why_not_fused as why_not_fused
