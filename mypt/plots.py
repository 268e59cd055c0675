"""Draw axes for the curves of commands, without a display, if matplotlib (the `plots` extra) is installed."""


def new_axes(title: str, xlabel: str, ylabel: str):
    """A figure, to be saved by `savefig`, and its axes; None, None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None, None
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def add_legend(axes, **options) -> None:
    """Add a legend whose names are printed as they are; options: of matplotlib's `legend`."""
    for text in axes.legend(**options).get_texts():
        text.set_parse_math(False)  # a name may hold a $
