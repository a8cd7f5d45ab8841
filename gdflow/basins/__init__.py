"""Sizes of basins of attraction by Monte Carlo, with certified verdicts and exact intervals.

*The engine* keeps a fixed number of starts in flight, each with its own step size. A start that is decided is
replaced by the next of a queue that was fixed in advance. So none waits for a slower one, and fast starts are not
favoured. Narrow linear networks run in a compiled loop of their own where there is a C compiler and nothing is proved
(`gdflow.basins.fused`), all else step by step through XLA (`gdflow.basins.lanes`), with the same results.

*What a certificate does not cover* is the integration error up to the state it is given. With `proof=True` a bound of
it is carried along with every start (`gdflow.basins.tube`): the verdict is then proved for the exact flow from the start,
and the interval's only uncertainty is sampling. Without proofs it is kept visible in two
ways. The drift of the conserved quantities stands beside every outcome. And an audit runs a random subsample again
with another solver at 100 times tighter tolerances: 5 % of the starts, at least 100 and at most 500, unless `audit=n`
says otherwise. An exact bound on the rate of labels that it contradicts goes into the interval; the interval without
it stands beside. A start that was undecided, and that the audit decides, contradicts nothing.

*Which law, which verdict.* A law says on which set of measure zero its starts lie, if on any (`law.invariant_set`).
Balanced starts keep the sign of `det W`. So theirs are certified at lower rank too, by default, and the plain
verdict, which round-off would mislead, is refused. "Almost sure" verdicts are for laws with a density only.

*Tolerance.* A verdict needs less accuracy than a trajectory: none of 4000 labels changed at any tolerance down to
rtol 1e-3, while the largest error of a certificate time grew from 1e-6 (rtol 1e-6) to 2e-4 (1e-4) and 8e-3 (1e-3). So
the default, rtol 1e-6 and atol 1e-9, is one at which the times too can be trusted. If only the labels matter, take
rtol 1e-4, atol 1e-7 and an audit (`benchmarks/tolerance.py`).

*Stiff problems.* Small singular values beside large ones make the way long, while the large ones bound the step.
There `gdflow.RKC(stages)`, a stabilised explicit method, needs fewer steps (figures in `benchmarks/README.md`).

*Descent.* With `GradientDescent(step)`, or `Descent(optax.adam, step)` for any optimizer of Optax, starts follow the iterates
instead of the flow. A limit of gradient descent is certified if its step is proved short enough (`gdflow.smoothness`). Else it
is located where the gradient has become small, below the second-lowest critical value, and the step is stable. What other
optimizers reach they may leave again (`gdflow.verdicts.DescentLevel`). Iterates that repeat go round a cycle. `step_size_basins`
compares steps, and `sweep` any settings.

*Memory* does not grow with the number of starts. Everything is counted, times go into a logarithmic histogram, and the first 10⁶
rows are kept. With a folder all rows are written there, as units of consecutive starts (`gdflow.basins.campaign`): whatever ends
a run, the same one in the same folder goes on where it was, and a larger number adds starts. With a `distributed.Client` units
are computed by its workers.

*How many starts?* A number, or until a rule is met (`Until`): intervals of the width that is wanted, or a time. Intervals then
hold for any number of starts.
"""

from gdflow.basins.campaign import FolderBusy as FolderBusy
from gdflow.basins.estimate import BasinEstimate as BasinEstimate
from gdflow.basins.methods import AbstractMethod as AbstractMethod
from gdflow.basins.methods import Descent as Descent
from gdflow.basins.methods import GradientDescent as GradientDescent
from gdflow.basins.methods import integrator as integrator
from gdflow.basins.outcomes import Status as Status
from gdflow.basins.plan import Plan as Plan
from gdflow.basins.plan import make_plan as make_plan
from gdflow.basins.process import Limits as Limits
from gdflow.basins.reading import CampaignStatus as CampaignStatus
from gdflow.basins.reading import campaign_status as campaign_status
from gdflow.basins.reading import export as export
from gdflow.basins.reading import load as load
from gdflow.basins.riders import AbstractRider as AbstractRider
from gdflow.basins.riders import Crossings as Crossings
from gdflow.basins.riders import Drift as Drift
from gdflow.basins.riders import Imbalance as Imbalance
from gdflow.basins.running import basin_sizes as basin_sizes
from gdflow.basins.running import repeat as repeat
from gdflow.basins.running import resume as resume
from gdflow.basins.starts import Drawn as Drawn
from gdflow.basins.starts import Listed as Listed
from gdflow.basins.starts import Sampled as Sampled
from gdflow.basins.step_sizes import StepSizeBasins as StepSizeBasins
from gdflow.basins.step_sizes import step_size_basins as step_size_basins
from gdflow.basins.stopping import Until as Until
from gdflow.basins.storage import DamageWarning as DamageWarning
from gdflow.basins.storage import StorageWarning as StorageWarning
from gdflow.basins.sweeps import Sweep as Sweep
from gdflow.basins.sweeps import sweep as sweep
