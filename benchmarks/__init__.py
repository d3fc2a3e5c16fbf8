"""How fast RobustFDD is beside the libraries called directly, and what a dropout costs: ``python -m benchmarks``.

Not a part of the package; a checkout is needed. See ``docs/benchmarks.md``.
"""
