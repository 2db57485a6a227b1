"""What frozen features are good for: k-NN, linear and logistic classification (`run.evaluate`), beside baselines."""
