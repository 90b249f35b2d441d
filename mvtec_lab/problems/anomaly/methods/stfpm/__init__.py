"""STFPM: a student that only good images have taught departs from its teacher at a defect."""

from mvtec_lab.problems.anomaly.methods.stfpm.detector import Detector

__all__ = ["Detector"]
