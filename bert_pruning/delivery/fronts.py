"""Quality against what it costs, drawn, with the Pareto front."""


def style(number):
    """Returns a colour and a marker that few others have together."""
    markers = "osD^vPX"
    return {
        "color": f"C{number % 10}",
        "marker": markers[number % len(markers)],
        "ms": 5,
    }


def pareto_front(points):
    """Returns the points than which none is both cheaper and better.

    Args:
        points: list of pairs: a cost, and a quality.

    Returns:
        Their numbers, by rising cost.
    """
    front, best = [], float("-inf")
    order = sorted(
        range(len(points)), key=lambda i: (points[i][0], -points[i][1])
    )
    for number in order:
        if points[number][1] > best:
            best = points[number][1]
            front.append(number)
    return front


def draw(axis, points, names, title, metric, more_is_better=False):
    """Draws models, and a line along those that no other beats.

    Args:
        axis: matplotlib.axes.Axes.
        points: list of pairs: what is on the x axis, and a quality.
        names: list of str. The models'.
        title: str. What is on the x axis.
        metric: str. The quality's name.
        more_is_better: bool. Of what is on the x axis, as zeros are.
    """
    sign = -1 if more_is_better else 1
    front = pareto_front([(sign * x, y) for x, y in points])
    axis.plot(
        *zip(*(points[i] for i in front), strict=True),
        color="0.6",
        linestyle="--",
        zorder=0,
    )
    for number, (point, name) in enumerate(zip(points, names, strict=True)):
        axis.plot(*point, label=name, linestyle="none", **style(number))
    axis.set_xlabel(title)
    axis.set_ylabel(metric.removeprefix("eval_"))
