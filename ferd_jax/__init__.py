"""Fairness-enhanced data-free adversarial robustness distillation in JAX."""

__version__ = '0.1.0'
