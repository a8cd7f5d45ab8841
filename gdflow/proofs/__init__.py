"""Proofs: from a float64 start to a theorem about its exact flow, checked again in ball arithmetic.

`prove` integrates one start and carries the tube of `gdflow.basins.tube` along: a ball round the computed state that holds the
exact flow. Where it ends below the second-lowest critical value, the limit of the exact flow is a global minimum. `Proof.check`
(extra `proofs`) goes through the same inequalities in ball arithmetic, from the stored path alone (`gdflow.proofs.balls`).
Many starts are proved by `gdflow.basin_sizes(…, proof=True)`.
"""

from gdflow.proofs.balls import Check as Check
from gdflow.proofs.proof import Proof as Proof
from gdflow.proofs.proof import load_proof as load_proof
from gdflow.proofs.proving import prove as prove
