"""Flows and their trajectories."""

from gdflow.dynamics import exact as exact
from gdflow.dynamics.descent import Descent as Descent
from gdflow.dynamics.descent import gradient_descent as gradient_descent
from gdflow.dynamics.forms import AbstractForm as AbstractForm
from gdflow.dynamics.forms import Factored as Factored
from gdflow.dynamics.graded import Graded as Graded
from gdflow.dynamics.gradient_flow import gradient_flow_field as gradient_flow_field
from gdflow.dynamics.gradient_flow import simulate as simulate
from gdflow.dynamics.limits import limit as limit
from gdflow.dynamics.low_rank import LowRank as LowRank
from gdflow.dynamics.perturbed_descent import PerturbedDescent as PerturbedDescent
from gdflow.dynamics.perturbed_descent import perturbed_gradient_descent as perturbed_gradient_descent
from gdflow.dynamics.riemannian_flow import riemannian_flow as riemannian_flow
from gdflow.dynamics.riemannian_trajectory import RiemannianTrajectory as RiemannianTrajectory
from gdflow.dynamics.runge_kutta import RK4 as RK4
from gdflow.dynamics.runge_kutta import RKC as RKC
from gdflow.dynamics.runge_kutta import AutomaticRKC as AutomaticRKC
from gdflow.dynamics.runge_kutta import GaussLegendre as GaussLegendre
from gdflow.dynamics.shooting import Shot as Shot
from gdflow.dynamics.shooting import shoot_at_saddle as shoot_at_saddle
from gdflow.dynamics.stopping import AbstractStop as AbstractStop
from gdflow.dynamics.stopping import AtCertificate as AtCertificate
from gdflow.dynamics.stopping import AtEvent as AtEvent
from gdflow.dynamics.stopping import AtGradientNorm as AtGradientNorm
from gdflow.dynamics.trajectory import Trajectory as Trajectory
