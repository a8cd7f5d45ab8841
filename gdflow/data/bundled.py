"""Small data sets that come with the package, each with its source."""

import pathlib

#: Names of the target columns of the Linnerud data.
LINNERUD_TARGETS = ("Weight", "Waist", "Pulse")


def linnerud_path() -> pathlib.Path:
    """The CSV file of the Linnerud data: 20 men, 3 exercises (features), 3 physiological measurements (targets).

    Columns `Chins, Situps, Jumps` (exercises a man could do) and `Weight` (pounds), `Waist` (inches), `Pulse`. The
    measurements were made by A. C. Linnerud (North Carolina State University) on middle-aged men of a fitness club and
    published in M. Tenenhaus, *La régression PLS: théorie et pratique*, Technip, Paris 1998; the table is also
    distributed with scikit-learn as `load_linnerud`.
    """
    return pathlib.Path(__file__).with_name("linnerud.csv")
