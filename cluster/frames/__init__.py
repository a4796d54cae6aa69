"""Ray actors that do frames and whole stages for one run."""
