"""RobustFDD: the adversarial robustness of dropout-regularised image classifiers."""

__version__ = "0.1.0"
