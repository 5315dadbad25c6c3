"""fishr-exp: experiments with Fishr, invariant gradient variances across domains."""

__version__ = "0.1.0"
