"""What the training examples share: data, transforms, metrics, training and reports."""
