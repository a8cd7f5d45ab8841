"""Laws of random starts. Start `i` of a law depends on the key and on `i` alone, never on batch, lane or device."""

from gdflow.initialization.densities import Around as Around
from gdflow.initialization.densities import Gaussian as Gaussian
from gdflow.initialization.densities import UniformBall as UniformBall
from gdflow.initialization.densities import fan_in as fan_in
from gdflow.initialization.densities import fan_out as fan_out
from gdflow.initialization.law import AbstractInitialization as AbstractInitialization
from gdflow.initialization.law import Support as Support
from gdflow.initialization.law import check_law as check_law
from gdflow.initialization.structured import Balanced as Balanced
from gdflow.initialization.structured import BalancedGaussian as BalancedGaussian
from gdflow.initialization.structured import LambdaBalanced as LambdaBalanced
from gdflow.initialization.structured import Orthogonal as Orthogonal
from gdflow.initialization.structured import Pyramidal as Pyramidal
