"""What parties say to each other; knows no learning algorithm but the baselines."""
