"""f-AnoGAN: a generator of good images, and an encoder that finds the code of the one most like a given image."""

from mvtec_lab.problems.anomaly.methods.fanogan.detector import Detector

__all__ = ["Detector"]
