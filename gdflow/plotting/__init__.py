"""Pictures that a paper could print: labelled axes, levels, colours for colour-blind readers (Okabe–Ito, viridis).

Every function returns a `matplotlib.figure.Figure` and leaves pyplot's state alone.
"""

from gdflow.plotting.basins import plot_basins as plot_basins
from gdflow.plotting.landscape import plot_saddle as plot_saddle
from gdflow.plotting.landscape import plot_spectra as plot_spectra
from gdflow.plotting.landscape import plot_strata as plot_strata
from gdflow.plotting.proof import plot_proof as plot_proof
from gdflow.plotting.step_sizes import plot_step_sizes as plot_step_sizes
from gdflow.plotting.style import COLORS as COLORS
from gdflow.plotting.sweeps import plot_sweep as plot_sweep
from gdflow.plotting.trajectory import plot_trajectory as plot_trajectory
