"""Networks, transforms, losses, and the training on Lightning."""
