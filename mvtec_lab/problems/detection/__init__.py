"""Detection finds the boxes of defects, each with its type; every method is a folder under methods/."""

from mvtec_lab.problems.base import VIEWS, Method, Option

_OPTIONS = {
    "channels": Option(int, "channels of every map of the pyramid, a multiple of 32", default=96, least=32, most=512),
    "finest": Option(int, "pixels a side of the cells of the finest map", default=8, least=2, most=32),
    "views": VIEWS,
}


def torchvision_method(name: str, model: str, **options: Option) -> Method:
    """Return the declaration of a method of TorchVision over the pyramid of a backbone.

    Args:
        name: of the method and of its folder.
        model: the class in its model.py.
        options: further ones.
    """
    home = f"{__name__}.methods.{name}.model:{model}"
    return Method(name, "detection", home=home, options={**_OPTIONS, **options})
