"""What is learned: rows read as examples, and the loss of a batch of them."""
