"""Mixup and CutMix as published: a given draw applied to a batch.

`ops` is a Keras backend. Images are `(batch, height, width, channels)` floats, labels
`(batch, num_classes)`, `partners` `(batch,)` integers. `weight` is a scalar, lambda of
the papers: the share of the first of two images. 1 changes nothing.
"""


def mixup(images, labels, partners, weight, ops):
    """Zhang et al., arXiv 1710.09412: one weight for all pairs of the batch."""

    def mixed(values):
        return weight * values + (1 - weight) * ops.numpy.take(values, partners, axis=0)

    return mixed(images), mixed(labels)


def cutmix(images, labels, partners, weight, centre, ops):
    """Yun et al., arXiv 1905.04899: one box for all pairs of the batch.

    The box has `1 - weight` of the area before the border cuts it off, and the labels
    are weighed by what of it is inside.

    Args:
        centre: `(row, column)` of the box, integer scalars.
    """
    height, width = images.shape[1:3]
    rows = _within(height, centre[0], weight, ops)
    columns = _within(width, centre[1], weight, ops)
    inside = ops.numpy.logical_and(rows[:, None], columns[None, :])
    area = ops.numpy.sum(ops.cast(inside, "float32"))
    share = 1 - area / (height * width)
    pasted = ops.numpy.take(images, partners, axis=0)
    images = ops.numpy.where(inside[None, :, :, None], pasted, images)
    return images, share * labels + (1 - share) * ops.numpy.take(
        labels, partners, axis=0
    )


def _within(side, centre, weight, ops):
    """Which of the pixels along a side are in the box."""
    half = ops.cast(0.5 * ops.numpy.sqrt(1 - weight) * side, "int32")
    pixels = ops.numpy.arange(side)
    return ops.numpy.logical_and(pixels >= centre - half, pixels < centre + half)
