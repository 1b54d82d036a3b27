"""Optimises the policy adapter on fresh rollouts."""
