"""Whole models, built from `nn`: configs are msgspec structs, arrays are time-major."""
