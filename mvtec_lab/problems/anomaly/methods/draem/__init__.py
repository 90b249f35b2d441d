"""DRAEM: a network mends what is not good, and another sees where it was mended."""

from mvtec_lab.problems.anomaly.methods.draem.detector import Detector

__all__ = ["Detector"]
