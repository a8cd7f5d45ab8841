"""Reading data tables, and the small data sets that come with the package."""

from gdflow.data.bundled import linnerud_path as linnerud_path
from gdflow.data.reading import Table as Table
from gdflow.data.reading import from_frame as from_frame
from gdflow.data.reading import read_csv as read_csv
from gdflow.data.reading import read_npz as read_npz
