"""Sizes of basins of attraction by Monte Carlo, with certified verdicts and exact intervals."""

from gdflow.basins.estimate import BasinEstimate as BasinEstimate
from gdflow.basins.estimate import basin_sizes as basin_sizes
from gdflow.basins.flows import LaneSettings as LaneSettings
from gdflow.basins.outcomes import Status as Status
from gdflow.basins.storage import StorageWarning as StorageWarning
