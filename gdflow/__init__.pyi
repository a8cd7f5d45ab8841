"""The public names of the package and where they are from; `__init__.py` reads them from here."""

from gdflow import initialization as initialization
from gdflow import landscape as landscape
from gdflow import verdicts as verdicts
from gdflow.basins import BasinEstimate as BasinEstimate
from gdflow.basins import basin_sizes as basin_sizes
from gdflow.basins import integrator as integrator
from gdflow.basins import load as load
from gdflow.basins import repeat as repeat
from gdflow.certificates import certify as certify
from gdflow.conservation import conservation_laws as conservation_laws
from gdflow.dynamics import RK4 as RK4
from gdflow.dynamics import RKC as RKC
from gdflow.dynamics import AtCertificate as AtCertificate
from gdflow.dynamics import AtEvent as AtEvent
from gdflow.dynamics import AtGradientNorm as AtGradientNorm
from gdflow.dynamics import GaussLegendre as GaussLegendre
from gdflow.dynamics import Trajectory as Trajectory
from gdflow.dynamics import limit as limit
from gdflow.dynamics import riemannian_flow as riemannian_flow
from gdflow.dynamics import shoot_at_saddle as shoot_at_saddle
from gdflow.dynamics import simulate as simulate
from gdflow.invariants import conserved as conserved
from gdflow.invariants import drift as drift
from gdflow.invariants import num_independent_laws as num_independent_laws
from gdflow.landscape import classify as classify
from gdflow.landscape import hessian as hessian
from gdflow.landscape import inertia as inertia
from gdflow.landscape import sample_critical_point as sample_critical_point
from gdflow.landscape import second_variation as second_variation
from gdflow.landscape import strata as strata
from gdflow.lie_algebra import count_conserved as count_conserved
from gdflow.network import LayerTuple as LayerTuple
from gdflow.problem import Potential as Potential
from gdflow.problem import Problem as Problem
from gdflow.problem import critical_values as critical_values
from gdflow.problem import iterate_critical_values as iterate_critical_values
from gdflow.programs import keep_programs as keep_programs
from gdflow.proofs import Proof as Proof
from gdflow.proofs import load_proof as load_proof
from gdflow.proofs import prove as prove
from gdflow.teacher import TeacherStudent as TeacherStudent

__version__: str
