"""Methods: one step of every lane. Which one runs is a choice of `gdflow.basin_sizes`; others can be written."""

from gdflow.basins.methods.descent import Descent as Descent
from gdflow.basins.methods.diffrax_solver import DiffraxSolver as DiffraxSolver
from gdflow.basins.methods.gradient_descent import GradientDescent as GradientDescent
from gdflow.basins.methods.method import AbstractMethod as AbstractMethod
from gdflow.basins.methods.method import Decision as Decision
from gdflow.basins.methods.method import Place as Place
from gdflow.basins.methods.method import Step as Step
from gdflow.basins.methods.runge_kutta import RungeKutta as RungeKutta
from gdflow.basins.methods.runge_kutta import integrator as integrator
