"""Training for every configuration of the family: the VAE objective, flow matching, and one loop under both."""
