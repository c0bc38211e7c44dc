"""What training minimises: each objective leaves the gradient of the mean loss over the global batch."""
