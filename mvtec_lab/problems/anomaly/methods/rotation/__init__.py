"""Rotation prediction: a network that knows how good images stand is at a loss with others."""

from mvtec_lab.problems.anomaly.methods.rotation.detector import Detector

__all__ = ["Detector"]
