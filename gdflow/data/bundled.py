"""Small data sets that come with the package, each with its source."""

import dataclasses
import pathlib

#: Names of the target columns of the Linnerud data.
LINNERUD_TARGETS = ("Weight", "Waist", "Pulse")
#: Names of the feature columns of the Iris data, and of the column of labels with its classes.
IRIS_FEATURES = ("SepalLength", "SepalWidth", "PetalLength", "PetalWidth")
IRIS_LABEL = "Species"
IRIS_CLASSES = ("setosa", "versicolor", "virginica")


def linnerud_path() -> pathlib.Path:
    """The CSV file of the Linnerud data: 20 men, 3 exercises (features), 3 physiological measurements (targets).

    Columns `Chins, Situps, Jumps` (exercises a man could do) and `Weight` (pounds), `Waist` (inches), `Pulse`. The
    measurements were made by A. C. Linnerud (North Carolina State University) on middle-aged men of a fitness club and
    published in M. Tenenhaus, *La régression PLS: théorie et pratique*, Technip, Paris 1998; the table is also
    distributed with scikit-learn as `load_linnerud`.
    """
    return pathlib.Path(__file__).with_name("linnerud.csv")


def iris_path() -> pathlib.Path:
    """The CSV file of the Iris data: 150 flowers, 4 lengths in centimetres (features), their species (label).

    Columns `SepalLength, SepalWidth, PetalLength, PetalWidth` and `Species`: 50 flowers each of *Iris setosa*, *versicolor* and
    *virginica*. The flowers were measured by E. Anderson (*The irises of the Gaspé Peninsula*, Bulletin of the American Iris
    Society 59, 1935, 2–5) and published in R. A. Fisher, *The use of multiple measurements in taxonomic problems*, Annals of
    Eugenics 7, 1936, 179–188.

    The values are Fisher's. The file of the UCI Machine Learning Repository, from which many copies descend, differs from them
    in three cells: `PetalWidth` of row 35 (0.2, there 0.1), and `SepalWidth` and `PetalLength` of row 38 (3.6 and 1.4, there 3.1
    and 1.5). The table was compared, cell by cell, with R's data set `iris` and seaborn's `iris.csv`, which agree with it in
    all cells, and with SciPy's test data, which descend from UCI's file and differ in these three alone. scikit-learn has had
    Fisher's values since version 0.20.

    ```python
    >>> Problem.from_csv(iris_path(), label="Species", loss=SoftmaxCrossEntropy()).info.targets
    ('setosa', 'versicolor', 'virginica')
    ```
    """
    return pathlib.Path(__file__).with_name("iris.csv")


@dataclasses.dataclass(frozen=True)
class Bundled:
    """A data set that comes with the package: its file, and its target columns or its column of labels."""

    path: pathlib.Path
    targets: tuple[str, ...] = ()
    label: str | None = None


#: By the names that the command line takes in place of a file.
NAMED: dict[str, Bundled] = {
    "linnerud": Bundled(linnerud_path(), targets=LINNERUD_TARGETS),
    "iris": Bundled(iris_path(), label=IRIS_LABEL),
}
