"""The command line of the training scripts, and the runs that it asks for."""
