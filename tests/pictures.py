"""Whether a picture can be read: measured on the renderer that saves it."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def _boxes(figure: Figure, texts: list[Text]) -> list[Bbox]:
    """The extents of texts that show something, in pixels; of annotations without their lines."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [Text.get_window_extent(t, renderer) for t in texts if t.get_visible() and t.get_text()]


def _labels(axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    labelled = zip(axis.get_ticklabels(), axis.get_majorticklocs(), strict=True)
    return [label for label, place in labelled if low <= place <= high]


def _overlap(one: Bbox, other: Bbox) -> bool:
    width, height = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > 0.5 and height > 0.5


def check_readable(figure: Figure) -> None:
    """All text lies inside the figure; titles do not overlap, nor two texts of a panel, nor two tick labels, nor any of these."""
    FigureCanvasAgg(figure).draw()
    texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    legends = [legend.get_window_extent() for legend in figure.legends]
    for box in [*_boxes(figure, texts), *legends]:
        assert Bbox.union([box, figure.bbox]).extents.tolist() == figure.bbox.extents.tolist(), box
    groups = [[axes.title for axes in figure.axes]]
    for axes in figure.axes:
        groups.append([*axes.texts, *_labels(axes.xaxis), *_labels(axes.yaxis), axes.xaxis.label, axes.yaxis.label,
                       axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()])  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            names = [label.get_text() for label in _labels(axis)]
            assert len(set(names)) == len(names)
            assert len(names) > 1 or not axes.axison or not len(axis.get_majorticklocs()), names
    for group in groups:
        for one, other in itertools.combinations(_boxes(figure, group), 2):
            assert not _overlap(one, other), (one, other)
