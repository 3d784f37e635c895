"""Nearest neighbours of frozen features, while training and after."""
