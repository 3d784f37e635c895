"""Classification of frozen features from few labels."""
