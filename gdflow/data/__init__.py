"""Reading data tables, and the small data sets that come with the package."""

from gdflow.data.archives import read_npz as read_npz
from gdflow.data.arrays import check_array as check_array
from gdflow.data.arrays import diagonal_target as diagonal_target
from gdflow.data.arrays import prepare as prepare
from gdflow.data.arrays import standardize as standardize
from gdflow.data.bundled import iris_path as iris_path
from gdflow.data.bundled import linnerud_path as linnerud_path
from gdflow.data.columns import Table as Table
from gdflow.data.frames import from_frame as from_frame
from gdflow.data.labels import find_classes as find_classes
from gdflow.data.labels import one_hot as one_hot
from gdflow.data.labels import signed as signed
from gdflow.data.labels import standardize_features as standardize_features
from gdflow.data.reading import read_csv as read_csv
