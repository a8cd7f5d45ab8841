"""Gradient flow in deep linear networks: simulation, invariants, certificates and basins of attraction.

| module | subject |
|---|---|
| `gdflow.problem` | data → objective and spectrum, coordinates and back, critical values; potentials |
| `gdflow.objective` | what is minimised, all that compiled programs see of a problem: value and gradient, one and in lanes |
| `gdflow.activations`, `gdflow.losses` | what stands between the layers, and what is made of the output |
| `gdflow.teacher` | ReLU students and teachers with Gaussian inputs, exactly |
| `gdflow.spectrum`, `gdflow.report` | the decompositions of the data; what is known of them before any flow |
| `gdflow.network` | layer tuples: products, variations, vector-space operations |
| `gdflow.perturbation` | the same problem on other data, traceably: derivatives in the data and their singular values |
| `gdflow.initialization`, `gdflow.ids` | laws of starts; start `i` depends on the key and the 64-bit id `i` alone |
| `gdflow.rounding` | how far a computed loss may lie from the exact one |
| `gdflow.factorizations` | small factorisations in lanes, without batched LAPACK calls, which can hang |
| `gdflow.invariants` | the conserved `C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ`, their number, their drift |
| `gdflow.conservation` | what the flow of any network conserves, and how much; what it does not, and why |
| `gdflow.lie_algebra` | how many quantities the flow conserves at a point, known or not |
| `gdflow.separation` | samples that a network separates: the flow runs to infinity, margins |
| `gdflow.landscape` | the critical set: strata, sampling, classification, second variations, inertia, extreme eigenpairs |
| `gdflow.thresholds`, `gdflow.sides` | critical values that a loss has provably passed; the side of `det W = 0` of a start |
| `gdflow.verdicts` | what is claimed of the limit of a start, and when |
| `gdflow.polish`, `gdflow.kinks`, `gdflow.attraction` | from a state to the critical point nearby; what flows to it |
| `gdflow.certificates` | what is proved from one state: level, explicit radius of the trajectory, exponential rates |
| `gdflow.avoidance` | which starts can reach no non-strict saddle |
| `gdflow.manifold` | matrices of rank k with the metric of balanced flow: 𝒜, its inverse, tangent space, fits |
| `gdflow.dynamics` | flows and their trajectories, limits with derivatives, shooting at saddles, exact solutions |
| `gdflow.basins` | plans and their runs: starts, methods, riders, the batch engine, exact intervals, audit |
| `gdflow.proofs` | from a float64 start to a theorem about its exact flow; checked again in ball arithmetic |
| `gdflow.plotting` | pictures for papers |
| `gdflow.experiments` | figures of the papers, recomputed, with a verdict on every claim |
| `gdflow.programs` | compiled programs, kept from one process for the next |
| `gdflow.records` | objects as JSON and back: what fixes a computation, on paper |
"""

import importlib
import pathlib
import re
from importlib.metadata import version as _version
from typing import Any

__version__ = _version("gdflow")

# Public names are imported when they are used first: importing all of JAX takes seconds, in which the command line could neither
# show its help nor be interrupted without a traceback. The stub lists them, for type checkers and for us.
_STUB = pathlib.Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULES = {name: module for module, name in re.findall(r"^from (gdflow\S*) import (\w+) as", _STUB, re.MULTILINE)}


def __getattr__(name: str) -> Any:
    if _MODULES.get(name, "gdflow") != "gdflow":
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        try:
            value = importlib.import_module(f"gdflow.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"gdflow.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
