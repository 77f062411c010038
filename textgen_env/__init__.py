"""Text generation as a Gymnasium MDP."""
