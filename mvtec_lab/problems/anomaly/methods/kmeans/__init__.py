"""k-means: the distance to the nearest centre of good images."""

from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "kmeans",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.kmeans.model:KMeans",
    trains=False,
    options={
        "layers": LAYERS,
        # A dozen or more of the 60 to 400 good images of MVTec's categories for each centre.
        "clusters": Option(int, "number of centres", default=5, least=1),
    },
)
