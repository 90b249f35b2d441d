"""CutPaste: what tells good images from ones with a piece pasted tells them from real defects as well."""

from mvtec_lab.problems.anomaly.methods.cutpaste.detector import Detector

__all__ = ["Detector"]
